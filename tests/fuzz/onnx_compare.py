"""Ask random ONNX models random things, through the worker's codec and guard, and ONNX Runtime directly.

`make compare-onnx`, `make compare-onnx CASES=100000`. Bits, shapes and datatypes must be the same, in every
form that a request and its answer may have; where ONNX Runtime refuses, so must the worker. A failure prints
its seed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from understudy.wire.errors import UnderstudyError
from understudy.wire.inference import CONTENTS, ModelInferRequest, ModelInferResponse
from understudy.wire.messages import Load
from understudy.wire.records import Finite
from understudy.wire.tensors import DATATYPES, Array, from_raw, round_to_bf16, text_or_bytes, to_raw
from understudy.worker.model import Model, load_model

KINDS = {
    "BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32, "UINT64": TensorProto.UINT64, "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16, "INT32": TensorProto.INT32, "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16, "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING, "BF16": TensorProto.BFLOAT16,
}  # fmt: skip
FORMS = ("flat", "nested", "binary", "mixed", "raw", "contents")
NAMES = ("x", "a b", "größe", "n/1:0", "'\"\\")
RANK_MAX = 8
REQUESTS = 20  # of each model


class Side(NamedTuple):
    """An input: what the file says of its shape, and a name for each open dimension."""

    name: str
    datatype: str
    shape: list[Any]


def make(seed: int, path: Path) -> list[Side] | None:
    """A random model; None if ONNX Runtime has no kernel for it."""
    rng = random.Random(seed)
    sides, nodes, outputs = [], [], []
    for index in range(rng.randint(1, 3)):
        datatype = rng.choice(list(KINDS))
        rank = rng.choice([0, 1, 1, 2, 2, 3, 4, rng.randint(5, RANK_MAX)])
        shape = [rng.choice([rng.randint(0, 3), f"d{index}{n}", None, "n"]) for n in range(rank)]
        side = Side(f"{NAMES[index]}{index}", datatype, shape)
        sides.append(side)
        out = f"{side.name}!"
        nodes.append(node(rng, side, out))
        claimed = rng.choice([None, shape, [5], [1] * rank, ["p"] * rank])
        kind = KINDS["INT64"] if nodes[-1].op_type == "Shape" else KINDS[datatype]
        outputs.append(helper.make_tensor_value_info(out, kind, claimed))
    inputs = [
        helper.make_tensor_value_info(
            side.name, KINDS[side.datatype], side.shape if rng.random() < 0.8 else None
        )
        for side in sides
    ]
    graph = helper.make_graph(nodes, "random", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    given = {side.datatype for side in sides}
    if {"BF16", "BYTES"} <= given:  # the one can't be had as NumPy arrays, the other not otherwise
        return None
    try:
        session(path)
    except Exception:
        return None
    return sides


def node(rng: random.Random, side: Side, out: str) -> Any:
    rank = len(side.shape)
    choices = ["Identity", "Shape"]
    if rank:
        choices += ["Transpose", "Concat", "Flatten"]
    if side.datatype in ("FP32", "FP64", "INT64", "INT32", "FP16"):
        choices += ["Add", "Add", "Mul"]
    match rng.choice(choices):
        case "Transpose":
            return helper.make_node("Transpose", [side.name], [out], perm=rng.sample(range(rank), rank))
        case "Concat":
            return helper.make_node("Concat", [side.name] * 2, [out], axis=rng.randrange(rank))
        case "Flatten":
            return helper.make_node("Flatten", [side.name], [out], axis=rng.randint(0, rank))
        case "Add" | "Mul" as name:
            return helper.make_node(name, [side.name] * 2, [out])
        case name:
            return helper.make_node(name, [side.name], [out])


def session(path: Path) -> Any:
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    return ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


def array(rng: random.Random, side: Side) -> Any:
    lengths: dict[Any, int] = {}
    shape = []
    for dimension in side.shape:
        length = rng.choice([0, 1, 1, 2, 3])
        fixed = isinstance(dimension, int)
        shape.append(dimension if fixed else lengths.setdefault(dimension, length) if dimension else length)
    count = prod(shape)
    if side.datatype == "BYTES":
        texts = [rng.choice(["", "a", "näh", "🙂" * 3, 'q"\\', "\n"]) for _ in range(count)]
        return np.array(texts, dtype=object).reshape(shape)
    dtype = DATATYPES[side.datatype]
    if side.datatype == "BOOL":
        return np.array([rng.random() < 0.5 for _ in range(count)], bool).reshape(shape)
    bits = np.frombuffer(rng.randbytes(count * dtype.itemsize), dtype).reshape(shape).copy()
    if dtype.kind == "f":
        bits[~np.isfinite(bits)] = 0
        if side.datatype == "BF16":
            bits = round_to_bf16(bits)
            bits[~np.isfinite(bits)] = 1
    return bits


def probe(rng: random.Random, sides: list[Side]) -> dict[str, Any]:
    tensors = []
    for side in sides:
        given = array(rng, side)
        shape = list(given.shape)
        tensors.append(
            {"name": side.name, "datatype": side.datatype, "shape": shape, "data": given.ravel().tolist()}
        )
    return {"inputs": tensors}


def ask(rng: random.Random, model: Model, sides: list[Side], arrays: list[Any], form: str) -> dict[str, Any]:
    """Output -> (datatype, array), by one way in and one way out. Raises what the worker says."""
    if form in ("raw", "contents"):
        return ask_protobuf(model, sides, arrays, form)
    tensors, contents = [], []
    for side, given in zip(sides, arrays, strict=True):
        tensor: dict[str, Any] = {"name": side.name, "datatype": side.datatype, "shape": list(given.shape)}
        if form == "binary" or (form == "mixed" and rng.random() < 0.5):
            content = bytes(to_raw(side.datatype, given))
            tensor["parameters"] = {"binary_data_size": len(content)}
            contents.append(content)
        else:
            tensor["data"] = given.tolist() if form == "nested" and given.ndim else given.ravel().tolist()
        tensors.append(tensor)
    wanted = rng.random() < 0.5
    head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": wanted}}).encode()
    body = bytearray(b"".join([head, *contents]))
    request = model.codec.decode(body, len(head) if contents or form == "binary" else -1)
    answer = encoded(model, request)
    size = answer.json_bytes if answer.json_bytes >= 0 else len(answer.body)
    at, found = size, {}
    for output in json.loads(answer.body[:size])["outputs"]:
        if "data" in output:
            values = [np.nan if value is None else value for value in output["data"]]
            made = np.array(values, DATATYPES[output["datatype"]]).reshape(output["shape"])
        else:
            end = at + output["parameters"]["binary_data_size"]
            made = from_raw(output["datatype"], output["shape"], bytearray(answer.body[at:end]), 0, end - at)
            at = end
        found[output["name"]] = (output["datatype"], made)
    return found


def ask_protobuf(model: Model, sides: list[Side], arrays: list[Any], form: str) -> dict[str, Any]:
    message = ModelInferRequest(model_name="m")
    typed = form == "contents" and all(side.datatype in CONTENTS for side in sides)
    for side, given in zip(sides, arrays, strict=True):
        tensor = message.inputs.add(name=side.name, datatype=side.datatype, shape=given.shape)
        if typed:
            values = given.ravel().tolist()
            values = [value.encode() for value in values] if side.datatype == "BYTES" else values
            getattr(tensor.contents, CONTENTS[side.datatype]).extend(values)
        else:
            message.raw_input_contents.append(bytes(to_raw(side.datatype, given)))
    request = model.codec.decode_protobuf(bytearray(message.SerializeToString()))
    response = ModelInferResponse.FromString(encoded(model, request).body)
    if not response.raw_output_contents:
        return {output.name: (output.datatype, _typed(output)) for output in response.outputs}
    return {
        output.name: (
            output.datatype, from_raw(output.datatype, list(output.shape), bytearray(raw), 0, len(raw))
        )
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }  # fmt: skip


def _typed(output: Any) -> Array:
    values = list(getattr(output.contents, CONTENTS[output.datatype]))
    if output.datatype == "BYTES":
        array = np.empty(len(values), object)
        array[:] = [text_or_bytes(value) for value in values]
    else:
        array = np.array(values, DATATYPES[output.datatype])
    return array.reshape(list(output.shape))


def encoded(model: Model, request: Any) -> Any:
    (done,) = model.execute([request])
    if done.outputs is None:
        assert done.error is not None
        raise done.error
    (answer,) = model.codec.encode(done.outputs, done.requests, done.rows)
    if isinstance(answer, UnderstudyError):
        raise answer
    return answer


def directly(session: Any, sides: list[Side], arrays: list[Any]) -> dict[str, Any]:
    """The same of ONNX Runtime alone; bfloat16 by its own conversion."""
    values = {}
    for side, given in zip(sides, arrays, strict=True):
        if side.datatype == "BF16":
            bits = (np.ascontiguousarray(given).view(np.uint32) >> 16).astype(np.uint16).reshape(given.shape)
            values[side.name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, TensorProto.BFLOAT16)
        else:
            values[side.name] = given
    names = [output.name for output in session.get_outputs() if output.type != "tensor(bfloat16)"]
    return dict(zip(names, session.run(names, values) if names else [], strict=True))


def same(got: Any, wanted: Any) -> bool:
    datatype, made = got
    if made.shape != wanted.shape or DATATYPES[datatype] != wanted.dtype:
        return False
    if wanted.dtype.kind == "f":  # JSON has one NaN, and no infinity
        return bool(
            np.array_equal(
                np.where(np.isfinite(made), made, np.nan),
                np.where(np.isfinite(wanted), wanted, np.nan),
                equal_nan=True,
            )
        )
    return bool(np.array_equal(made, wanted))


def run(seed: int, requests: int, folder: Path, outcomes: Counter[str]) -> list[str]:
    """Ask one model `requests` times; what differed."""
    path = folder / "m.onnx"
    sides = make(seed, path)
    if sides is None:
        outcomes["models without a kernel"] += 1
        return []
    load = Load("r", "app", 1, "v", "onnx", str(path), finite=Finite.ALLOWED, measure_latency_runs=2)
    rng, reference, wrong = random.Random(seed), session(path), []
    try:
        model, _ = load_model(load, 1)
    except UnderstudyError:
        outcomes["models that need a probe"] += 1
        load.probe = probe(rng, sides)
    try:
        model, _ = load_model(load, 1)
    except UnderstudyError as error:
        return [f"seed {seed}: {[node.op_type for node in onnx.load(path).graph.node]}: {error}"]
    outcomes["models"] += 1
    for number in range(requests):
        form = FORMS[number % len(FORMS)]
        arrays = [array(rng, side) for side in sides]
        try:
            wanted = directly(reference, sides, arrays)
        except Exception:
            wanted = None
        try:
            got = ask(rng, model, sides, arrays, form)
        except UnderstudyError as error:
            outcomes["refused by both" if wanted is None else "refused"] += 1
            wrong += [f"seed {seed}: {form}: {error}"] if wanted is not None else []
            continue
        outcomes[form] += 1
        if wanted is None or not all(same(got[name], value) for name, value in wanted.items()):
            wrong.append(f"seed {seed}: {form}: {got} is not {wanted}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="requests")
    parser.add_argument("--seed", type=int, default=1, help="of the first model")
    arguments = parser.parse_args()
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    started_s, seed = time.monotonic(), arguments.seed
    with tempfile.TemporaryDirectory() as folder:
        while sum(outcomes[form] for form in FORMS) < arguments.count and len(wrong) < 20:
            wrong += run(seed, REQUESTS, Path(folder), outcomes)
            seed += 1
    for line in wrong:
        sys.stdout.write(line[:1000] + "\n")
    asked = sum(outcomes[form] for form in FORMS)
    sys.stdout.write(
        f"{asked:,} requests to {outcomes['models']:,} models in {time.monotonic() - started_s:.0f} s, "
        f"{len(wrong)} differed: {dict(outcomes)}\n"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
