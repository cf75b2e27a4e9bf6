"""FastAPI + ONNX Runtime, as both recommend it for speed.

One session for each process with one thread for an inference, an `async` handler that infers in place (the
model takes less time than a change of thread), pydantic models in and out, so that its compiled core
checks the request and writes the reply. uvicorn runs it on uvloop and httptools, without an access log.
"""

from __future__ import annotations

import os

import numpy as np
import onnxruntime
from fastapi import FastAPI
from pydantic import BaseModel

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class InferenceRequest(BaseModel):
    inputs: list[Tensor]


class InferenceResponse(BaseModel):
    model_name: str
    outputs: list[Tensor]


app = FastAPI()


@app.get("/v2/models/digits/ready")
async def ready() -> dict[str, bool]:
    return {"ready": True}


@app.post("/v2/models/digits/infer")
async def infer(request: InferenceRequest) -> InferenceResponse:
    tensor = request.inputs[0]
    rows = np.array(tensor.data, np.float32).reshape(tensor.shape)
    (probabilities,) = session.run(None, {tensor.name: rows})
    output = Tensor(
        name="probabilities",
        shape=list(probabilities.shape),
        datatype="FP32",
        data=probabilities.ravel().tolist(),
    )
    return InferenceResponse(model_name="digits", outputs=[output])
