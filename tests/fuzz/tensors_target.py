"""Request bodies as a worker gets them: JSON alone, and JSON with binary tensors behind it."""

from __future__ import annotations

import json
import struct
from random import Random
from typing import Any

import numpy as np
from mutations import mutated

from understudy.wire.errors import InvalidArgument
from understudy.wire.records import TensorSpec
from understudy.wire.tensors import DATATYPES, Array, from_raw, to_raw
from understudy.worker.oip import Codec

SPECS = tuple(TensorSpec(datatype.lower(), datatype, (-1, 2)) for datatype in DATATYPES)
LENGTH = struct.Struct("<q")  # before a body: how much of it is JSON
ODD = (-1, 0, 1, 3, 2**31, 2**63, 2**64, 10**30, 1.5, "2", None, True, [2], {"a": 1})


class TensorsTarget:
    name = "tensors"

    def __init__(self) -> None:
        self.codecs = [codec_of(spec) for spec in SPECS]
        self.all = codec_of(*SPECS)

    def generate(self, rng: Random) -> list[bytes]:
        """One piece: which codec, the length of the JSON, and the body."""
        which = rng.randrange(len(SPECS) + 1)
        specs = SPECS if which == len(SPECS) else (SPECS[which],)
        rows = rng.choice((0, 1, 1, 2, 5))
        tensors, contents = [], b""
        for spec in specs:
            tensor, content = tensor_of(rng, spec, rows)
            tensors.append(tensor)
            contents += content
        body: dict[str, Any] = {"inputs": tensors}
        if rng.random() < 0.3:
            body["id"] = "q"
        if rng.random() < 0.3:
            body["parameters"] = {"binary_data_output": rng.random() < 0.8}
        if rng.random() < 0.3:
            wanted = rng.choice(specs).name
            body["outputs"] = [{"name": wanted, "parameters": {"binary_data": rng.random() < 0.7}}]
        if rng.random() < 0.4:
            distort(rng, body)
        head = json.dumps(body).encode()
        json_bytes = len(head) if contents or rng.random() < 0.5 else -1
        if rng.random() < 0.05:
            json_bytes = rng.choice((0, 1, -1, len(head) - 1, len(head) + 1, 2**40))
        whole = head + contents
        if rng.random() < 0.4:
            whole = mutated(rng, whole)
        elif rng.random() < 0.02:
            depth = rng.choice((10, 1000, 100_000))
            whole, json_bytes = b'{"inputs":' + b"[" * depth, -1
        return [bytes([which]) + LENGTH.pack(json_bytes) + whole]

    def check(self, pieces: list[bytes]) -> str:
        which, json_bytes = pieces[0][0], LENGTH.unpack_from(pieces[0], 1)[0]
        body = pieces[0][1 + LENGTH.size :]
        codec = self.all if which == len(SPECS) else self.codecs[which]
        specs = SPECS if which == len(SPECS) else (SPECS[which],)
        form = "JSON" if json_bytes < 0 else "binary"
        try:
            request = codec.decode(body, json_bytes)
        except InvalidArgument as error:
            assert_short(error)
            return f"{form} refused"
        assert_sound(specs, request.inputs, request.rows)
        (answer,) = codec.encode(request.inputs, [request], request.rows)
        if isinstance(answer, InvalidArgument):
            return f"{form} read, not to be written as JSON"
        if isinstance(answer, Exception):
            raise answer
        if answer.json_bytes >= 0:
            assert_same(codec, request.inputs, bytes(answer.body), answer.json_bytes)
        return f"{form} read"


def codec_of(*specs: TensorSpec) -> Codec:
    """Of a model whose outputs are its inputs."""
    return Codec("app", 1, specs, specs, batched=True)


def array_of(rng: Random, datatype: str, rows: int) -> Array:
    if datatype == "BYTES":
        texts = ("", "a", "grün", b"\xff\xfe", "x" * 40)
        return np.array([rng.choice(texts) for _ in range(2 * rows)], dtype=object).reshape(rows, 2)
    if datatype == "BOOL":
        return np.frombuffer(bytes(rng.getrandbits(1) for _ in range(2 * rows)), bool).reshape(rows, 2)
    dtype = DATATYPES[datatype]
    return np.array([rng.randrange(100) for _ in range(2 * rows)]).astype(dtype).reshape(rows, 2)


def tensor_of(rng: Random, spec: TensorSpec, rows: int) -> tuple[dict[str, Any], bytes]:
    """A tensor's JSON and what follows the JSON."""
    array = array_of(rng, spec.datatype, rows)
    tensor: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": [rows, 2]}
    if rng.random() < 0.7:
        content = bytes(to_raw(spec.datatype, array))
        tensor["parameters"] = {"binary_data_size": len(content)}
        return tensor, content
    data = array.ravel() if rng.random() < 0.5 else array
    tensor["data"] = json.loads(json.dumps(data.tolist(), default=lambda raw: raw.decode("latin-1")))
    return tensor, b""


def distort(rng: Random, body: Any) -> None:
    """One value somewhere in it becomes another one, goes away, or is there twice."""
    while True:
        keys = list(body) if isinstance(body, dict) else list(range(len(body)))
        if not keys:
            return
        key = rng.choice(keys)
        if not isinstance(body[key], dict | list) or rng.random() < 0.2:
            break
        body = body[key]
    how = rng.random()
    if how < 0.15:
        del body[key]
    elif how < 0.25 and isinstance(body, list):
        body.append(body[key])
    else:
        body[key] = rng.choice(ODD)


def assert_short(error: Exception) -> None:
    assert len(str(error)) < 1000, "an error as long as its cause"


def assert_sound(specs: tuple[TensorSpec, ...], arrays: dict[str, Array], rows: int) -> None:
    """What a model is given is what its specification says."""
    assert set(arrays) == {spec.name for spec in specs}
    for spec in specs:
        array = arrays[spec.name]
        assert array.shape == (rows, 2), (spec, array.shape)
        assert array.dtype == DATATYPES[spec.datatype], (spec, array.dtype)
        assert array.flags.aligned
        if spec.datatype == "BYTES":
            assert all(isinstance(element, str | bytes) for element in array.flat)
        elif spec.datatype == "BOOL":
            assert array.view(np.uint8).max(initial=0) <= 1


def assert_same(codec: Codec, sent: dict[str, Array], body: bytes, json_bytes: int) -> None:
    """The binary outputs of an answer hold what the inputs did."""
    content = json.loads(body[:json_bytes])
    at = json_bytes
    for output in content["outputs"]:
        size = (output.get("parameters") or {}).get("binary_data_size")
        if size is None:
            continue
        array = from_raw(output["datatype"], output["shape"], body, at, size)
        at += size
        np.testing.assert_array_equal(array, sent[output["name"]])
    assert at == len(body)
