"""FastAPI + ONNX Runtime, as both recommend it for speed.

An `async` handler that infers in place (the model takes less time than a change of thread), pydantic models
in and out, so that its compiled core checks the request and writes the reply. uvicorn runs it on uvloop and
httptools, without an access log, in one process for each core (its docs on deployment). An image comes as
the bytes of the body.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from pydantic import BaseModel

from benchmarks.peers.inference import Model, rows_of_bytes


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
digits = Model("digits")
image = Model("image")


@app.post("/v2/models/digits/infer")
async def infer_digits(request: InferenceRequest) -> InferenceResponse:
    tensor = request.inputs[0]
    probabilities = digits.infer(np.array(tensor.data, np.float32).reshape(tensor.shape))
    output = Tensor(
        name="probabilities",
        shape=list(probabilities.shape),
        datatype="FP32",
        data=probabilities.ravel().tolist(),
    )
    return InferenceResponse(model_name="digits", outputs=[output])


@app.post("/v2/models/image/infer")
async def infer_image(request: Request) -> dict[str, Any]:
    return image.answer(rows_of_bytes(await request.body()))
