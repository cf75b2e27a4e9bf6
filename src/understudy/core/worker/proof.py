"""The walk through a graph that proves, or doesn't, that its rows are independent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from understudy.core.worker.graph import Graph, Node, NotProven, Tensor
from understudy.core.worker.lengths import BATCH
from understudy.core.worker.operators import infer
from understudy.wire.records import TensorSpec


class Proof(NamedTuple):
    """`crosses`: it isn't merely not understood, rows are certainly looked at together."""

    proven: bool
    reason: str
    crosses: bool = False


def prove(graph: Graph, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> Proof:
    """Whether row i of each output depends on row i of the inputs alone. The specs are what is enforced."""
    known: dict[str, Tensor | NotProven] = dict(graph.constants)
    for spec in inputs:
        if spec.name in graph.constants:
            return Proof(False, f"input {spec.name!r} may be left out")
        rest = (n if n >= 0 else f"${spec.name}[{i}]" for i, n in enumerate(spec.shape[1:], 1))
        known[spec.name] = Tensor((BATCH, *rest), 0)
    for number, node in enumerate(graph.nodes):
        found = _outcome(node, known, graph.opsets, number)
        for index, name in enumerate(node.outputs):
            if name:
                known[name] = found if isinstance(found, NotProven) else found[index]
    for spec in outputs:
        tensor = known.get(spec.name, NotProven("nothing makes it"))
        if isinstance(tensor, NotProven):
            return Proof(False, f"output {spec.name!r}: {tensor}", tensor.crosses)
        if tensor.axis != 0:
            return Proof(False, f"output {spec.name!r} doesn't have a row for each row")
    return Proof(True, "its graph works row by row")


def _outcome(
    node: Node, known: Mapping[str, Tensor | NotProven], opsets: Mapping[str, int], number: int
) -> tuple[Tensor, ...] | NotProven:
    operands: list[Tensor | None] = []
    for name in node.inputs:
        operand = known.get(name) if name else None
        if isinstance(operand, NotProven):
            return operand
        if name and operand is None:
            return NotProven(f"{node.op} reads {name!r}, which nothing makes")
        operands.append(operand)
    try:
        made: tuple[Tensor, ...] = infer(node, operands, opsets.get(node.domain, 0), f"${number}")
    except NotProven as error:
        name = f" {node.name!r}" if node.name else ""
        return NotProven(f"{node.op}{name} {error}", crosses=error.crosses)
    if len(made) < len(node.outputs):
        return NotProven(f"{node.op} has an output that isn't understood")
    return made
