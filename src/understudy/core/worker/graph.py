"""Does a graph work row by row? Its batch axis is followed from the inputs to every output.

Lives here: what is known of a tensor. The walk is in `proof`, what each operator does to the axis in
`operators`, its arithmetic with shapes in `lengths`. Sound, not complete: an operator, an attribute or a
shape that isn't understood ends the proof, and rehearsal has the word.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from understudy.core.worker.lengths import Lengths, is_fixed


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
