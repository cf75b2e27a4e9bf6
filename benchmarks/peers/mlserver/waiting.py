"""MLServer's custom runtime for the waiting model."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

from benchmarks.peers.accelerator import Accelerator


class WaitingModel(MLModel):
    async def load(self) -> bool:
        self.model = Accelerator()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        outputs = self.model.outputs(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(model_name=self.name, outputs=[ResponseOutput(**o) for o in outputs])
