"""Random ONNX graphs, row-wise and not: where requests may share a batch, their answers never differ.

    python tests/fuzz/graphs.py --count 5000 [--seed S]

A graph grows operator by operator, each with random axes, shapes and operands, and is kept where ONNX Runtime
runs it. What the proof allows is compared with each row alone; a difference is a hole in the proof.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from understudy.core.worker.proof import Proof, prove
from understudy.wire.records import TensorSpec
from understudy.worker.batching.onnx_file import read_graph
from understudy.worker.batching.tolerance import Tolerance

ROWS = 3  # while a graph grows; lengths of 3 elsewhere are mistaken for it if anybody mistakes
OPERATORS = 7
PART = 250  # graphs
UNARY = ("Relu", "Neg", "Tanh", "Abs", "Sigmoid", "Identity", "Softplus", "Erf")
BINARY = ("Add", "Sub", "Mul", "Max", "Min")
REDUCTIONS = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2")
Array = np.ndarray[Any, Any]


class Built(NamedTuple):
    model: bytes
    inner: tuple[int, ...]  # shape of a row
    operators: tuple[str, ...]


class _Growing:
    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.inner = tuple(int(n) for n in random.integers(1, 5, size=int(random.integers(1, 4))))
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.shapes: dict[str, tuple[int, ...]] = {"x": (ROWS, *self.inner)}
        self.number = 0
        self.x = random.normal(size=(ROWS, *self.inner)).astype(np.float32)

    def pick(self) -> str:
        names = list(self.shapes)
        return str(names[-1] if self.random.random() < 0.6 else self.random.choice(names))

    def axis(self, name: str) -> int:
        rank = max(1, len(self.shapes[name]))
        return int(self.random.integers(-rank, rank))

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def weights(self, *shape: int) -> str:
        return self.constant(self.random.normal(size=shape))

    def fresh(self) -> str:
        self.number += 1
        return f"t{self.number}"

    def model(self, outputs: list[str]) -> onnx.ModelProto:
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", *self.inner])
        named = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
        needed, nodes = set(outputs), []
        for node in reversed(self.nodes):
            if needed & set(node.output):
                nodes.append(node)
                needed |= set(node.input)
        constants = [constant for constant in self.constants if constant.name in needed]
        graph = helper.make_graph(nodes[::-1], "g", [value], named, constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def grow(self) -> None:
        kept = len(self.nodes), len(self.constants)
        try:
            made = OPERATIONS[int(self.random.integers(len(OPERATIONS)))](self)
            (value,) = session(self.model([made]).SerializeToString()).run(None, {"x": self.x})
        except Exception:
            del self.nodes[kept[0] :], self.constants[kept[1] :]
            return
        if value.dtype != np.float32 or not value.size or value.size > 5000 or not np.isfinite(value).all():
            del self.nodes[kept[0] :], self.constants[kept[1] :]
            return
        self.shapes[made] = value.shape

    def add(self, op: str, inputs: list[str], **attributes: Any) -> str:
        name = self.fresh()
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name


def _unary(g: _Growing) -> str:
    return g.add(str(g.random.choice(UNARY)), [g.pick()])


def _other(g: _Growing, name: str) -> str:
    shape = g.shapes[name]
    match int(g.random.integers(5)):
        case 0:
            return g.pick()
        case 1:
            return g.weights()
        case 2:
            return g.weights(*shape[int(g.random.integers(len(shape) + 1)) :])
        case 3:
            return g.weights(*(n if g.random.random() < 0.5 else 1 for n in shape))
        case _:
            return g.weights(ROWS)


def _binary(g: _Growing) -> str:
    name = g.pick()
    operands = [name, _other(g, name)]
    return g.add(str(g.random.choice(BINARY)), operands if g.random.random() < 0.7 else operands[::-1])


def _reduce(g: _Growing) -> str:
    name = g.pick()
    op = str(g.random.choice(REDUCTIONS))
    keep = int(g.random.integers(2))
    axes = [g.axis(name)] if g.random.random() < 0.9 else None
    if op == "ReduceSum":
        return g.add(op, [name] + ([g.constant(axes, np.int64)] if axes else []), keepdims=keep)
    return g.add(op, [name], keepdims=keep, **({"axes": axes} if axes else {}))


def _along(g: _Growing) -> str:
    name = g.pick()
    if g.random.random() < 0.3:
        return g.add("CumSum", [name, g.constant(g.axis(name), np.int64)], reverse=int(g.random.integers(2)))
    op = str(g.random.choice(["Softmax", "LogSoftmax", "LpNormalization"]))
    return g.add(op, [name], axis=g.axis(name))


def _transpose(g: _Growing) -> str:
    name = g.pick()
    order = g.random.permutation(len(g.shapes[name])).tolist()
    return g.add("Transpose", [name], **({"perm": order} if g.random.random() < 0.8 else {}))


def _reshape(g: _Growing) -> str:
    name = g.pick()
    shape = g.shapes[name]
    first = shape[0] if shape else 1
    size = int(np.prod(shape))
    choices: list[list[int]] = [[0, -1], [-1], [-1, shape[-1] if shape else 1], [1, -1], [-1, 1], [first, -1]]
    choices += [[0, 1, -1], [-1, *shape[1:]], [*shape[::-1]], [-1, max(1, size // max(1, first))], [0, -1, 1]]
    target = choices[int(g.random.integers(len(choices)))]
    if g.random.random() < 0.4:  # as exporters write it: a length of the tensor itself, and the rest
        lengths = g.add("Shape", [name])
        at = int(g.random.integers(max(1, len(shape))))
        one = g.add("Gather", [lengths, g.constant([at], np.int64)], axis=0)
        parts = [one, g.constant([-1], np.int64)]
        if g.random.random() < 0.3:
            parts.reverse()
        return g.add("Reshape", [name, g.add("Concat", parts, axis=0)])
    return g.add("Reshape", [name, g.constant(target, np.int64)])


def _flatten(g: _Growing) -> str:
    name = g.pick()
    return g.add("Flatten", [name], axis=g.axis(name))


def _squeeze(g: _Growing) -> str:
    name = g.pick()
    axes = [] if g.random.random() < 0.3 else [g.constant([g.axis(name)], np.int64)]
    return g.add("Squeeze", [name, *axes])


def _unsqueeze(g: _Growing) -> str:
    name = g.pick()
    return g.add("Unsqueeze", [name, g.constant([g.axis(name)], np.int64)])


def _concat(g: _Growing) -> str:
    name = g.pick()
    other = g.pick() if g.random.random() < 0.7 else g.weights(*g.shapes[name])
    return g.add("Concat", [name, other], axis=g.axis(name))


def _slice(g: _Growing) -> str:
    name = g.pick()
    start = int(g.random.integers(-1, 2))
    end = int(g.random.choice([1, 2, 3, 2**31 - 1, -1]))
    step = int(g.random.choice([1, 1, 1, -1]))
    bounds = [g.constant([n], np.int64) for n in (start, end, g.axis(name), step)]
    return g.add("Slice", [name, *bounds])


def _gather(g: _Growing) -> str:
    name = g.pick()
    indices: Any = [0] if g.random.random() < 0.5 else (0 if g.random.random() < 0.5 else [0, 0])
    return g.add("Gather", [name, g.constant(indices, np.int64)], axis=g.axis(name))


def _matmul(g: _Growing) -> str:
    name = g.pick()
    shape = g.shapes[name]
    last = shape[-1] if shape else 1
    match int(g.random.integers(5)):
        case 0:
            return g.add("MatMul", [name, g.weights(last, 3)])
        case 1:
            return g.add("MatMul", [g.weights(2, shape[-2] if len(shape) > 1 else last), name])
        case 2:
            return g.add("MatMul", [name, g.pick()])
        case 3:
            turned = g.add("Transpose", [name], perm=[*range(len(shape) - 2), len(shape) - 1, len(shape) - 2])
            return g.add("MatMul", [name, turned])
        case _:
            return g.add("MatMul", [name, g.weights(ROWS, last, 2)])


def _gemm(g: _Growing) -> str:
    name = g.pick()
    shape = g.shapes[name]
    turned = int(g.random.integers(2))
    inner = shape[0] if turned else shape[-1]
    bias = [] if g.random.random() < 0.4 else [_other(g, name)]
    return g.add("Gemm", [name, g.weights(inner, 3), *bias], transA=turned)


def _where(g: _Growing) -> str:
    name = g.pick()
    over = g.add("Greater", [name, g.weights()])
    return g.add("Where", [over, _other(g, name), name])


def _expand(g: _Growing) -> str:
    name = g.pick()
    lengths = g.add("Shape", [name])
    if g.random.random() < 0.5:
        return g.add("Expand", [g.weights(), lengths])
    filled = g.add("ConstantOfShape", [lengths], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0.5]))
    return g.add("Add", [filled, _other(g, name)])


def _norm(g: _Growing) -> str:
    name = g.pick()
    axis = g.axis(name)
    return g.add(
        "LayerNormalization",
        [name, g.weights(*g.shapes[name][axis % max(1, len(g.shapes[name])) :])],
        axis=axis,
    )


def _top(g: _Growing) -> str:
    name = g.pick()
    made, places = g.fresh(), g.fresh()
    g.nodes.append(
        helper.make_node("TopK", [name, g.constant([1], np.int64)], [made, places], axis=g.axis(name))
    )
    return made


def _place(g: _Growing) -> str:
    name = g.pick()
    found = g.add("ArgMax", [name], axis=g.axis(name), keepdims=int(g.random.integers(2)))
    return g.add("Cast", [found], to=TensorProto.FLOAT)


def _pad(g: _Growing) -> str:
    name = g.pick()
    pads = (g.random.random(2 * len(g.shapes[name])) < 0.2).astype(np.int64)
    return g.add("Pad", [name, g.constant(pads, np.int64)])


def _tile(g: _Growing) -> str:
    name = g.pick()
    return g.add("Tile", [name, g.constant(g.random.choice([1, 1, 2], size=len(g.shapes[name])), np.int64)])


def _quantized(g: _Growing) -> str:
    made = [g.fresh() for _ in range(3)]
    g.nodes.append(helper.make_node("DynamicQuantizeLinear", [g.pick()], made))
    return g.add("DequantizeLinear", made)


def _split(g: _Growing) -> str:
    name = g.pick()
    made = [g.fresh() for _ in range(2)]
    g.nodes.append(helper.make_node("Split", [name], made, axis=g.axis(name)))
    return str(g.random.choice(made))


def _recurrent(g: _Growing) -> str:
    name = g.pick()
    last = g.shapes[name][-1] if g.shapes[name] else 1
    made = [g.fresh() for _ in range(2)]
    inputs = [name, g.weights(1, 6, last), g.weights(1, 6, 2)]
    g.nodes.append(helper.make_node("GRU", inputs, made, hidden_size=2))
    return str(g.random.choice(made))


def _convolution(g: _Growing) -> str:
    name = g.pick()
    shape = g.shapes[name]
    if g.random.random() < 0.4:
        return g.add(str(g.random.choice(["GlobalAveragePool", "GlobalMaxPool"])), [name])
    return g.add("Conv", [name, g.weights(2, shape[1] if len(shape) > 1 else 1, *(1 for _ in shape[2:]))])


def _einsum(g: _Growing) -> str:
    name = g.pick()
    if any(node.op_type == "Squeeze" for node in g.nodes):
        raise ValueError("of another rank than it was built for, ONNX Runtime ends the process")
    rank = len(g.shapes[name])
    equations = {2: ["ab,ab->a", "ab,cb->ac", "ab,ab->b", "ab,ab->ba"], 3: ["abc,abd->acd", "abc,abc->ac"]}
    equation = str(g.random.choice(equations[rank]))
    return g.add("Einsum", [name, name], equation=equation)


def _lengths(g: _Growing) -> str:
    """Arithmetic with lengths, which may be those of the rows."""
    name = g.pick()
    lengths = g.add("Shape", [name])
    one = g.add("Gather", [lengths, g.constant(int(g.random.integers(2)), np.int64)], axis=0)
    count = g.add("Cast", [one], to=TensorProto.FLOAT)
    return g.add(str(g.random.choice(["Mul", "Div", "Add"])), [name, count])


OPERATIONS = (
    _unary, _binary, _binary, _reduce, _along, _transpose, _reshape, _reshape, _flatten, _squeeze, _unsqueeze,
    _concat, _slice, _gather, _matmul, _matmul, _gemm, _where, _expand, _norm, _top, _place, _pad, _tile,
    _quantized, _split, _recurrent, _convolution, _einsum, _lengths,
)  # fmt: skip


def session(model: bytes) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def build(seed: int) -> Built | None:
    """The graph of this seed; None where nothing came of it."""
    growing = _Growing(np.random.default_rng(seed))
    for _ in range(OPERATORS):
        growing.grow()
    output = list(growing.shapes)[-1]
    if output == "x" or not growing.shapes[output]:
        return None
    model = growing.model([output])
    return Built(model.SerializeToString(), growing.inner, tuple(n.op_type for n in model.graph.node))


def proof_of(built: Built, folder: Path) -> tuple[Proof, TensorSpec, TensorSpec]:
    path = folder / "m.onnx"
    path.write_bytes(built.model)
    graph = read_graph(str(path))
    assert graph is not None
    (output,) = [o.name for o in onnx.load_from_string(built.model).graph.output]
    made, spec = TensorSpec(output, "FP32", (-1,)), TensorSpec("x", "FP32", (-1, *built.inner))
    return prove(graph, [spec], [made]), spec, made


def mixed(built: Built, output: TensorSpec, seed: int) -> str:
    """What differs between rows together and each alone; empty if nothing does."""
    random = np.random.default_rng(seed)
    run = session(built.model)
    tolerance = Tolerance((output,))
    for rows in (2, 3, 5):
        scales = random.choice([0.01, 1.0, 3.0], size=(rows, *(1 for _ in built.inner)))
        x = (random.normal(size=(rows, *built.inner)) * scales).astype(np.float32)
        (together,) = run.run(None, {"x": x})
        if not together.ndim or len(together) != rows:
            return f"{together.shape} for {rows} rows"
        for row in range(rows):
            (alone,) = run.run(None, {"x": x[row : row + 1]})
            difference = tolerance.difference({output.name: alone}, {output.name: together[row : row + 1]})
            if difference and np.isfinite(alone).all():
                return difference
    return ""


def judged(seeds: range) -> tuple[Counter[str], list[str]]:
    """How many graphs were proven and how many mix rows, and each that did both."""
    counts: Counter[str] = Counter()
    holes = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            built = build(seed)
            if built is None:
                continue
            proof, _, output = proof_of(built, Path(folder))
            try:
                difference = mixed(built, output, seed)
            except Exception as error:
                difference = f"raises {type(error).__name__}"
            counts[
                f"{'proven' if proof.proven else 'not proven'}, {'mixes' if difference else 'row-wise'}"
            ] += 1
            if proof.proven and difference:
                holes.append(f"seed {seed}: {difference}: {' '.join(built.operators)}")
    return counts, holes


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", action="store_true", help="in this process")
    asked = parser.parse_args(arguments)
    if asked.part:
        counts, holes = judged(range(asked.seed, asked.seed + asked.count))
        sys.stdout.write(json.dumps([counts, holes]))
        return 0
    # In parts: some graphs that are wrong in just one length end the process inside ONNX Runtime.
    total: Counter[str] = Counter()
    found: list[str] = []
    for first in range(asked.seed, asked.seed + asked.count, PART):
        command = [sys.executable, __file__, "--part", "--seed", str(first), "--count", str(PART)]
        part = subprocess.run(command, capture_output=True, check=False)
        if part.returncode:
            total["parts that ONNX Runtime ended"] += 1
            continue
        counts, holes = json.loads(part.stdout)
        total.update(counts)
        found += holes
    sys.stdout.write("\n".join([*found, json.dumps(total)]) + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
