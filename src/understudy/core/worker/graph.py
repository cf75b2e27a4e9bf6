"""Does a graph work row by row? Its batch axis is followed from the inputs to every output.

Lives here: what is known of a tensor, and the walk. What each operator does to the axis is in `operators`,
its arithmetic with shapes in `lengths`. Sound, not complete: an operator, an attribute or a shape that isn't
understood ends the proof, and rehearsal has the word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from understudy.core.worker.lengths import BATCH, Lengths, is_fixed
from understudy.wire.records import TensorSpec


class NotProven(Exception):
    """Why the batch axis can't be followed. `crosses`: the operator certainly looks at several rows."""

    def __init__(self, reason: str, *, crosses: bool = False) -> None:
        super().__init__(reason)
        self.crosses = crosses


class Tensor(NamedTuple):
    """What is known of one tensor.

    With an `axis`, index i along it depends on row i of the inputs and nothing else, and no other length
    depends on how many rows there are. Without one, the tensor is the same whatever rows come, except that
    its `values` (few whole numbers, row-major) may name the number of rows.
    """

    shape: Lengths | None = None  # None: not even the rank is known
    axis: int | None = None
    values: Lengths | None = None
    keeps_first: bool = False  # a constant whose first number is 1.0: the scale of the first axis

    @property
    def fixed(self) -> bool:
        """Does it not depend on how many rows there are?"""
        return self.axis is None and all(map(is_fixed, self.values or ()))


class Node(msgspec.Struct):
    """An operator of the graph. Empty names stand for what is left out."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    domain: str = ""
    attributes: dict[str, Any] = {}  # a small tensor as a `Tensor`; None: something else
    name: str = ""


class Graph(msgspec.Struct):
    """A model as far as the proof needs it. `opsets`: version by domain, "" for ONNX's own."""

    nodes: tuple[Node, ...]
    constants: dict[str, Tensor]
    opsets: dict[str, int]


class Proof(NamedTuple):
    """`crosses`: it isn't merely not understood, rows are certainly looked at together."""

    proven: bool
    reason: str
    crosses: bool = False


def prove(graph: Graph, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> Proof:
    """Whether row i of each output depends on row i of the inputs alone. The specs are what is enforced."""
    from understudy.core.worker.operators import infer  # it needs the names above

    known: dict[str, Tensor | NotProven] = dict(graph.constants)
    for spec in inputs:
        if spec.name in graph.constants:
            return Proof(False, f"input {spec.name!r} may be left out")
        rest = (n if n >= 0 else f"${spec.name}[{i}]" for i, n in enumerate(spec.shape[1:], 1))
        known[spec.name] = Tensor((BATCH, *rest), 0)
    for number, node in enumerate(graph.nodes):
        found = _outcome(node, known, graph.opsets, infer, number)
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
    node: Node, known: Mapping[str, Tensor | NotProven], opsets: Mapping[str, int], infer: Any, number: int
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
