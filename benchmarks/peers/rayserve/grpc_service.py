"""ModelInfer of the Open Inference Protocol, as Ray Serve wants a gRPC service, for the small model.

The messages are those of `understudy.wire`, which need nothing but protobuf.
"""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np

from benchmarks.peers.inference import Array
from understudy.wire.inference import SERVICE, ModelInferRequest, ModelInferResponse


def add_to_server(servicer: Any, server: Any) -> None:
    handler = grpc.unary_unary_rpc_method_handler(
        servicer.ModelInfer,
        request_deserializer=ModelInferRequest.FromString,
        response_serializer=ModelInferResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": handler}),))


def rows_of(request: Any) -> Array:
    return np.frombuffer(request.raw_input_contents[0], np.float32).reshape(request.inputs[0].shape)


def answer_of(probabilities: Array) -> Any:
    answer = ModelInferResponse(model_name="digits", raw_output_contents=[probabilities.tobytes()])
    answer.outputs.add(name="probabilities", datatype="FP32", shape=probabilities.shape)
    return answer
