"""What tests that call a gateway over gRPC share."""

from __future__ import annotations

import numpy as np

from understudy.wire.inference import SERVICE, ModelInferRequest

METHOD = f"/{SERVICE}/ModelInfer"


def infer_message(app: str) -> bytes:
    """One row for `families.write_linear_app`."""
    request = ModelInferRequest(
        model_name=app,
        inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 4]}],
        raw_input_contents=[np.ones(4, np.float32).tobytes()],
    )
    encoded: bytes = request.SerializeToString()
    return encoded
