"""BentoML with both models.

A worker for each core, `async` methods so that no request changes its thread, no metrics and no log of
accesses. An image is the body of the request, which BentoML hands over as a file.
"""

from pathlib import Path
from typing import Annotated, Any

import bentoml
import numpy as np
from bentoml.validators import ContentType

from benchmarks.peers.inference import Model, rows_of_bytes

CORES = 2


@bentoml.service(workers=CORES, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Models:
    def __init__(self) -> None:
        self.digits = Model("digits")
        self.image = Model("image")

    @bentoml.api(route="/v2/models/digits/infer")
    async def infer_digits(self, x: np.ndarray) -> np.ndarray:
        return self.digits.infer(x.astype(np.float32))

    @bentoml.api(route="/v2/models/image/infer")
    async def infer_image(
        self, body: Annotated[Path, ContentType("application/octet-stream")], /
    ) -> dict[str, Any]:
        return self.image.answer(rows_of_bytes(body.read_bytes()))
