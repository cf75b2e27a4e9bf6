"""MLServer's custom runtime for both models."""

from __future__ import annotations

import base64

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.peers.inference import Model, rows_of_bytes


class OnnxModel(MLModel):
    async def load(self) -> bool:
        self.model = Model(self.name)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        tensor = payload.inputs[0]
        if tensor.datatype == "BYTES":
            rows = rows_of_bytes(base64.b64decode(tensor.data[0]))
        else:
            rows = NumpyCodec.decode_input(tensor)
        output = NumpyCodec.encode_output("probabilities", self.model.infer(rows))
        return InferenceResponse(model_name=self.name, outputs=[output])
