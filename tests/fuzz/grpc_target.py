"""Serialized ModelInferRequests: the gateway's walk over the fields and the worker's decoder."""

from __future__ import annotations

from random import Random

from google.protobuf.message import DecodeError
from mutations import mutated
from tensors_target import SPECS, array_of, assert_short, assert_sound

from understudy.wire.errors import InvalidArgument
from understudy.wire.inference import ModelInferRequest, ModelInferResponse
from understudy.wire.protobuf import read_infer_head
from understudy.wire.tensors import to_raw
from understudy.worker import protobuf

TYPED = {
    "INT32": "int_contents",
    "FP32": "fp32_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
}


class GrpcTarget:
    name = "grpc"

    def __init__(self) -> None:
        specs = tuple((spec,) for spec in SPECS)
        self.specs = (*specs, SPECS)
        self.codecs = [protobuf.Codec("app", 1, spec, spec, batched=True) for spec in self.specs]

    def generate(self, rng: Random) -> list[bytes]:
        """One piece: which codec, and the message."""
        which = rng.randrange(len(self.specs))
        message = self._message(rng, which)
        if rng.random() < 0.7:
            message = mutated(rng, message, (self._message(rng, which),) if rng.random() < 0.2 else ())
        return [bytes([which]) + message]

    def _message(self, rng: Random, which: int) -> bytes:
        rows = rng.choice((0, 1, 1, 2, 5))
        request = ModelInferRequest(model_name=rng.choice(("app", "", "grün")), id="q")
        typed = rng.random() < 0.2
        for spec in self.specs[which]:
            array = array_of(rng, spec.datatype, rows)
            tensor = request.inputs.add(name=spec.name, datatype=spec.datatype, shape=[rows, 2])
            if typed and spec.datatype in TYPED:
                getattr(tensor.contents, TYPED[spec.datatype]).extend(array.ravel().tolist())
            else:
                request.raw_input_contents.append(bytes(to_raw(spec.datatype, array)))
        if rng.random() < 0.2:
            tensor = rng.choice(request.inputs)
            tensor.shape[rng.randrange(2)] = rng.choice((-1, 0, 3, 2**31, 2**62, -(2**63)))
        if rng.random() < 0.1:
            request.outputs.add(name=rng.choice(self.specs[which]).name)
        message: bytes = request.SerializeToString()
        if rng.random() < 0.02:
            message += message * rng.choice((1, 50))
        return message

    def check(self, pieces: list[bytes]) -> str:
        which, message = pieces[0][0], pieces[0][1:]
        walked = _check_head(message)
        codec = self.codecs[which]
        try:
            request = codec.decode_protobuf(message)
        except InvalidArgument as error:
            assert_short(error)
            return "refused by the worker" if walked else "refused by the gateway"
        assert walked, "the worker read what the gateway refuses"
        assert_sound(self.specs[which], request.inputs, request.rows)
        (answer,) = codec.encode(request.inputs, [request], request.rows)
        if isinstance(answer, Exception):
            raise answer
        response = ModelInferResponse.FromString(bytes(answer.body))
        assert response.id == (request.id or "")
        contents = response.raw_output_contents
        assert len(contents) == (0 if request.in_contents else len(response.outputs))
        for output, content in zip(response.outputs, contents, strict=False):
            sent = bytes(to_raw(output.datatype, request.inputs[output.name]))
            assert content == sent
        return "read"


def _check_head(message: bytes) -> bool:
    """Whether the gateway reads it. If the library does too, they agree."""
    try:
        head = read_infer_head(message)
    except InvalidArgument:
        return False
    try:
        parsed = ModelInferRequest.FromString(message)
    except DecodeError:
        return True  # what is wrong lies deeper than the walk looks
    assert (head.model_name, head.model_version) == (parsed.model_name, parsed.model_version)
    return True
