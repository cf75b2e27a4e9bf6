"""Lengths of dimensions that may be known only by name, and arithmetic with them.

A length is a number, a name that begins with "$" (it doesn't depend on how many rows there are), BATCH (the
number of rows), or MIXED (it depends on that number in some other way).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import prod

Length = int | str
Lengths = tuple[Length, ...]
BATCH = "rows"
MIXED = "mixed"
VALUES_MAX = 64  # of a tensor whose values are followed


def _is_length(value: Length) -> bool:
    """It is one of an input's, and so never negative; the result of a calculation may be anything."""
    return value == BATCH or (isinstance(value, str) and value.endswith("]"))


def is_fixed(length: Length) -> bool:
    return isinstance(length, int) or length.startswith("$")


class Product:
    """Of lengths: a number and names."""

    __slots__ = ("names", "number")

    def __init__(self, lengths: Iterable[Length]) -> None:
        listed = list(lengths)
        self.number = prod(n for n in listed if isinstance(n, int))
        self.names = Counter(n for n in listed if isinstance(n, str))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Product) or MIXED in self.names or MIXED in other.names:
            return False
        return self.number == other.number and self.names == other.names

    __hash__ = None  # type: ignore[assignment]

    def over(self, divisor: Product, fresh: str) -> Length:
        """The quotient, `fresh` where it has no name but doesn't depend on the rows; MIXED otherwise."""
        names = self.names.copy()
        names.subtract(divisor.names)
        rows = names.pop(BATCH, 0)
        rest = +names
        exact = divisor.number != 0 and self.number % divisor.number == 0 and not -names
        if MIXED in names or rows not in (0, 1):
            return MIXED
        if exact and not rest:
            number = self.number // divisor.number
            return (BATCH if number == 1 else MIXED) if rows else number
        if rows:
            return MIXED
        if exact and self.number == divisor.number and rest.total() == 1:
            return next(iter(rest))
        return fresh


def broadcast(shapes: Sequence[Lengths], fresh: str) -> Lengths:
    """The shape that NumPy's rules give; lengths that can't be told apart get a name of their own."""
    rank = max(map(len, shapes), default=0)
    made: list[Length] = []
    for at in range(rank):
        found = {s[at - rank + len(s)] for s in shapes if at - rank + len(s) >= 0} - {1}
        numbers = {n for n in found if isinstance(n, int)}
        if BATCH in found:
            made.append(BATCH)
        elif len(numbers) == 1:
            made.append(numbers.pop())  # whatever the others are, they are it or 1
        elif len(found) == 1:
            made.append(found.pop())
        else:
            made.append(f"{fresh}.{at}" if found else 1)
    return tuple(made)


def added(a: Length, b: Length, fresh: str) -> Length:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if 0 in (a, b):
        return b if a == 0 else a
    return fresh if is_fixed(a) and is_fixed(b) else MIXED


def calculated(op: str, a: Length, b: Length, fresh: str) -> Length:
    """One element of an arithmetic operator on whole numbers. Truth is 1 and 0."""
    if op == "Mul":
        if 1 in (a, b):
            return b if a == 1 else a
        if isinstance(a, int) and isinstance(b, int):
            return a * b
    elif op == "Add":
        return added(a, b, fresh)
    elif op == "Sub":
        if isinstance(a, int) and isinstance(b, int):
            return a - b
        if b == 0:
            return a
    elif op == "Div":
        if b == 1:
            return a
        if isinstance(a, int) and isinstance(b, int) and b > 0 and a >= 0:
            return a // b
    elif op == "Equal":
        if isinstance(a, int) and isinstance(b, int):
            return int(a == b)
        if any(isinstance(n, int) and n < 0 for n in (a, b)) and any(map(_is_length, (a, b))):
            return 0
    return fresh if is_fixed(a) and is_fixed(b) else MIXED
