"""LitServe with both models: the port as argument.

A worker and an API server for each core. Small requests run in batches.
"""

import sys
from typing import Annotated, Any

import litserve
import numpy as np
from fastapi import Body

from benchmarks.peers.inference import Array, Model, answer_of, rows_of_bytes, rows_of_json

CORES = 2
BATCH = 16
BATCH_TIMEOUT_S = 0.001
Image = Annotated[bytes, Body(media_type="application/octet-stream")]


class DigitsApi(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = Model("digits")

    def decode_request(self, request):  # an annotation would make it the schema of the body
        return rows_of_json(request)

    def batch(self, inputs: list[Array]) -> Array:
        return np.concatenate(inputs)

    def predict(self, rows: Array) -> Array:
        return self.model.infer(rows)

    def unbatch(self, probabilities: Array) -> list[Array]:
        return [probabilities[row : row + 1] for row in range(len(probabilities))]

    def encode_response(self, probabilities):
        return answer_of(self.model.name, probabilities)


class ImageApi(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = Model("image")

    def decode_request(self, request: Image):
        return rows_of_bytes(request)

    def predict(self, rows: Array) -> dict[str, Any]:
        return self.model.answer(rows)


if __name__ == "__main__":
    digits = DigitsApi(
        max_batch_size=BATCH, batch_timeout=BATCH_TIMEOUT_S, api_path="/v2/models/digits/infer"
    )
    apis = [digits, ImageApi(api_path="/v2/models/image/infer")]
    server = litserve.LitServer(apis, accelerator="cpu", workers_per_device=CORES)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=CORES,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
