"""What a gateway says to gRPC clients: status codes, who answered, what it serves.

The twin of `answers` for the other transport. Nothing here knows of sockets or of the gRPC library's
server.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from grpc import StatusCode

from understudy.gateway.static_answers import for_outputs
from understudy.wire import inference
from understudy.wire.errors import InvalidArgument, UnderstudyError
from understudy.wire.frames import Buffer
from understudy.wire.protobuf import length_delimited
from understudy.wire.records import AppVersion
from understudy.wire.statics import Static
from understudy.wire.statuses import STATUSES

Metadata = tuple[tuple[str, str], ...]

_BY_NUMBER = {status.value[0]: status for status in StatusCode}
_STREAM_ERROR, _STREAM_RESPONSE = 1, 2  # fields of ModelStreamInferResponse
_ID = 3  # of ModelInferResponse


# Failures


def status_of(error: UnderstudyError) -> StatusCode:
    return _BY_NUMBER[STATUSES[error.code].grpc]


def error_metadata(error: UnderstudyError, retry_after_s: int) -> Metadata:
    """Trailing metadata of a failure. A client library with a retry policy obeys the push-back (gRFC A6)."""
    code = ("understudy-code", str(error.code))
    if status_of(error) in (StatusCode.RESOURCE_EXHAUSTED, StatusCode.UNAVAILABLE) and error.retryable:
        wait_s = error.context.get("wait_s", retry_after_s)
        return code, ("grpc-retry-pushback-ms", str(round(wait_s * 1000)))
    return (code,)


def address_of(peer: str) -> str:
    """Who calls, without the port: "ipv4:192.0.2.1:50" or "ipv6:%5B2001:db8::1%5D:50" to its address."""
    return unquote(peer.partition(":")[2].rpartition(":")[0]).strip("[]")


def stream_error(error: UnderstudyError, request_id: bytes) -> bytes:
    """A ModelStreamInferResponse that says what is wrong with one request; the stream goes on."""
    response = length_delimited(_STREAM_RESPONSE, length_delimited(_ID, request_id))
    return length_delimited(_STREAM_ERROR, str(error).encode()) + response


# Inference


@lru_cache(maxsize=1024)
def provenance(variant: str, version: int, degraded: str, other_app: str = "") -> tuple[bytes, Metadata]:
    """Who answered: as the end of a serialized ModelInferResponse, and as metadata."""
    facts = {"understudy-variant": variant, "understudy-version": str(version)}
    if degraded:
        facts["understudy-degraded"] = degraded
    if other_app:
        facts["understudy-app"] = other_app
    response = inference.ModelInferResponse()
    for name, value in facts.items():
        response.parameters[name].string_param = value
    return response.SerializeToString(), tuple(facts.items())


def _final_parameter() -> bytes:
    response = inference.ModelInferResponse()
    response.parameters["triton_final_response"].bool_param = True
    encoded: bytes = response.SerializeToString()
    return encoded


_FINAL = _final_parameter()


def stream_answer(answer: bytes) -> bytes:
    """`answer` as the only, and so the final, response to one request of a stream."""
    return length_delimited(_STREAM_RESPONSE, answer + _FINAL)


def static_answer(spec: AppVersion, static: Static, request: Buffer, request_id: bytes) -> bytes:
    """A static answer to the serialized `request`, as a ModelInferResponse. Raises `InvalidArgument`."""
    try:
        parsed = inference.ModelInferRequest.FromString(bytes(request))
    except DecodeError as error:
        raise InvalidArgument(f"not a ModelInferRequest: {error}") from error
    wishes = [(output.name, _parameters(output)) for output in parsed.outputs]
    response = inference.ModelInferResponse(model_name=spec.app, model_version=str(spec.version))
    tensors = list(for_outputs(spec, static, wishes))
    in_contents = any(tensor.HasField("contents") for tensor in parsed.inputs)  # as a replica would decide
    in_contents = in_contents and all(tensor.datatype in inference.CONTENTS for tensor in tensors)
    for tensor in tensors:
        output = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if in_contents:
            texts = tensor.datatype == "BYTES"
            values = [str(value).encode() for value in tensor.values] if texts else tensor.values
            getattr(output.contents, inference.CONTENTS[tensor.datatype]).extend(values)
        else:
            response.raw_output_contents.append(tensor.raw)
    encoded: bytes = response.SerializeToString()
    return encoded + length_delimited(_ID, request_id)


def _parameters(output: Any) -> dict[str, Any]:
    """Those of a requested output but for what JSON calls `binary_data`: here everything is binary."""
    return {
        name: getattr(value, choice)
        for name, value in output.parameters.items()
        if (choice := value.WhichOneof("parameter_choice")) and name != "binary_data"
    }


# Everything but inference


def described(response: str, content: dict[str, Any]) -> Any:
    """What the HTTP API says as JSON, as the message `response`, which may have fewer fields."""
    return ParseDict(content, inference.message(response)(), ignore_unknown_fields=True)
