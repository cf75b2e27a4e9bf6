"""What each operator does to the batch axis: a table of rules, one for each kind of operator.

A rule is given what is known of the operands and says what is known of the results, or raises `NotProven`.
An operator that isn't in the table, or an attribute that its entry doesn't name, is not understood. Operators
follow the ONNX specification, versions 7 to 24 of its own set and 1 to 5 of `ai.onnx.ml`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from understudy.core.worker.graph import Node, NotProven, Tensor
from understudy.core.worker.lengths import (
    BATCH,
    MIXED,
    VALUES_MAX,
    Length,
    Lengths,
    Product,
    added,
    broadcast,
    calculated,
)

Operands = Sequence[Tensor | None]
INT_MAX = 2**31 - 1  # ends of slices at least as large stand for "to the end"
_WHOLE = (6, 7)  # ONNX's numbers for INT32 and INT64
OPSETS = {"": (7, 24), "ai.onnx.ml": (1, 5), "com.microsoft": (1, 1)}


class Use(NamedTuple):
    """One use of an operator. `fresh` begins the names of lengths that it makes."""

    node: Node
    operands: Operands
    opset: int
    fresh: str

    def get(self, index: int) -> Tensor | None:
        return self.operands[index] if index < len(self.operands) else None

    def at(self, index: int) -> Tensor:
        operand = self.get(index)
        if operand is None:
            raise NotProven(f"lacks operand {index}")
        return operand

    def attribute(self, name: str, default: Any) -> Any:
        return self.node.attributes.get(name, default)


Rule = Callable[[Use], tuple[Tensor, ...]]


class Entry(NamedTuple):
    rule: Rule
    attributes: frozenset[str]
    lengths: bool  # it knows what to do with lengths that name the number of rows


def infer(node: Node, operands: Operands, opset: int, fresh: str) -> tuple[Tensor, ...]:
    """What is known of the results. Raises `NotProven`."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    entry = TABLE.get((domain, node.op))
    if entry is None:
        raise NotProven("is not in the table of row-wise operators")
    oldest, newest = OPSETS[domain]
    if not oldest <= opset <= newest:
        raise NotProven(f"is of version {opset} of its set; the table knows {oldest} to {newest}")
    unknown = node.attributes.keys() - entry.attributes
    if unknown:
        raise NotProven(f"has an attribute {min(unknown)!r} that the table doesn't know")
    if not entry.lengths and any(o.axis is None and not o.fixed for o in operands if o is not None):
        raise NotProven("calculates with the number of rows")
    return entry.rule(Use(node, operands, opset, fresh))


# What rules share


def shape_of(tensor: Tensor) -> Lengths:
    if tensor.shape is None:
        raise NotProven("works on a tensor of unknown rank")
    return tensor.shape


def fixed(tensor: Tensor | None, what: str) -> None:
    if tensor is not None and not tensor.fixed:
        raise NotProven(f"takes its {what} from the rows")


def integers(tensor: Tensor | None, what: str) -> tuple[int, ...]:
    if tensor is None or tensor.values is None or tensor.axis is not None:
        raise NotProven(f"has {what} that aren't known beforehand")
    found = tuple(v for v in tensor.values if isinstance(v, int))
    if len(found) != len(tensor.values):
        raise NotProven(f"has {what} that aren't known beforehand")
    return found


def normal(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise NotProven(f"has an axis {axis} beyond its rank")
    return axis % rank


def crosses(tensor: Tensor, axes: Sequence[int], how: str) -> None:
    if tensor.axis in axes:
        raise NotProven(f"{how} the rows", crosses=True)


def only_fixed(call: Use) -> bool:
    """Nothing that it works on has to do with rows. What it makes is then a constant, of whatever shape."""
    used = [operand for operand in call.operands if operand is not None]
    if any(operand.axis is not None for operand in used):
        return False
    if not all(operand.fixed for operand in used):  # for those that know lengths, but not these
        raise NotProven("calculates with the number of rows")
    return True


def constant(call: Use) -> tuple[Tensor, ...]:
    return tuple(Tensor() for _ in call.node.outputs)


def first_axis(tensor: Tensor, rank: int | None = None) -> Lengths:
    """Its shape, if its rows lie along the first axis."""
    shape = shape_of(tensor)
    if tensor.axis != 0 or (rank is not None and len(shape) != rank):
        raise NotProven("doesn't have its rows along the first axis")
    return shape


def opened(rank: int, axis: int | None, fresh: str) -> Lengths:
    """A shape of which only the rank is known."""
    return tuple(BATCH if at == axis else f"{fresh}.{at}" for at in range(rank))


# Element by element


def elementwise(call: Use, count: int = 1) -> tuple[Tensor, ...]:
    used = [operand for operand in call.operands if operand is not None]
    if all(operand.axis is None for operand in used):
        if not all(operand.fixed for operand in used):
            raise NotProven("calculates with the number of rows")
        if any(operand.shape is None for operand in used):
            return (Tensor(),) * count
        return (Tensor(broadcast([shape_of(o) for o in used], call.fresh)),) * count
    shapes = [shape_of(operand) for operand in used]
    rank = max(map(len, shapes))
    axes = {o.axis + rank - len(s) for o, s in zip(used, shapes, strict=True) if o.axis is not None}
    if len(axes) > 1:
        raise NotProven("combines rows with one another")
    (axis,) = axes
    for operand, shape in zip(used, shapes, strict=True):
        at = axis - rank + len(shape)
        if operand.axis is None and (not operand.fixed or (at >= 0 and shape[at] != 1)):
            raise NotProven("gives each row something that depends on its place")
    return (Tensor(broadcast(shapes, call.fresh), axis),) * count


def unary(call: Use) -> tuple[Tensor, ...]:
    one = call.at(0)
    for operand in call.operands[1:]:
        fixed(operand, "settings")
    return (Tensor(one.shape, one.axis),)


def identity(call: Use) -> tuple[Tensor, ...]:
    return (call.at(0),)


def cast(call: Use) -> tuple[Tensor, ...]:
    one = call.at(0)
    if one.axis is None and not one.fixed and call.attribute("to", 0) not in _WHOLE:
        raise NotProven("calculates with the number of rows")
    return (one if call.attribute("to", 0) in _WHOLE else Tensor(one.shape, one.axis),)


def cast_like(call: Use) -> tuple[Tensor, ...]:
    one = call.at(0)
    return (Tensor(one.shape, one.axis),)


def clip(call: Use) -> tuple[Tensor, ...]:
    for limit in call.operands[1:]:
        if limit is not None and (limit.axis is not None or limit.shape not in ((), (1,))):
            raise NotProven("has limits that aren't single numbers")
    return unary(call)


def arithmetic(call: Use) -> tuple[Tensor, ...]:
    """Two operands, which may be lengths."""
    a, b = call.at(0), call.at(1)
    if _are_lengths(a, b):
        size = max(len(a.values or ()), len(b.values or ()))
        columns = [_stretched(t.values or (), size) for t in (a, b)]
        if all(len(column) == size for column in columns):
            pairs = enumerate(zip(*columns, strict=True))
            values = tuple(calculated(call.node.op, x, y, f"{call.fresh}.{i}") for i, (x, y) in pairs)
            return (Tensor(broadcast([shape_of(a), shape_of(b)], call.fresh), None, values),)
    return elementwise(call)


def _are_lengths(*tensors: Tensor) -> bool:
    return all(t.axis is None and t.values is not None and len(t.shape or ()) <= 1 for t in tensors)


def _stretched(values: Lengths, size: int) -> Lengths:
    return values * size if len(values) == 1 else values


def where(call: Use) -> tuple[Tensor, ...]:
    chosen, a, b = call.at(0), call.at(1), call.at(2)
    if _are_lengths(chosen, a, b):
        size = max(len(t.values or ()) for t in (chosen, a, b))
        columns = [_stretched(t.values or (), size) for t in (chosen, a, b)]
        if all(len(column) == size for column in columns):
            values = tuple(
                x if x == y else (x if c else y) if isinstance(c, int) else MIXED
                for c, x, y in zip(*columns, strict=True)
            )
            return (Tensor(broadcast([shape_of(t) for t in (chosen, a, b)], call.fresh), None, values),)
    return elementwise(call)


def dropout(call: Use) -> tuple[Tensor, ...]:
    if call.get(2) is not None and integers(call.get(2), "a training mode") != (0,):
        raise NotProven("is in training mode")
    one = call.at(0)
    return (Tensor(one.shape, one.axis),) * len(call.node.outputs)


# Shapes


def shape(call: Use) -> tuple[Tensor, ...]:
    lengths = shape_of(call.at(0))
    start, end = call.attribute("start", 0), call.attribute("end", None)
    values = lengths[start:end]
    return (Tensor((len(values),), None, values),)


def size(call: Use) -> tuple[Tensor, ...]:
    return (Tensor((), None, (Product(shape_of(call.at(0))).over(Product(()), call.fresh),)),)


def made_constant(call: Use) -> tuple[Tensor, ...]:
    attributes = call.node.attributes
    value = attributes.get("value")
    if isinstance(value, Tensor):
        return (value,)
    for name in ("value_int", "value_ints"):
        if name in attributes:
            given = attributes[name]
            values = tuple(given) if isinstance(given, list | tuple) else (given,)
            return (Tensor((len(values),) if name.endswith("s") else (), None, values[:VALUES_MAX]),)
    if "value_floats" in attributes or "value_strings" in attributes:
        return (Tensor(),)
    if "value_float" in attributes or "value_string" in attributes:
        return (Tensor(()),)
    raise NotProven("has a value that isn't understood")


def constant_of_shape(call: Use) -> tuple[Tensor, ...]:
    lengths = call.at(0)
    if lengths.values is None:
        fixed(lengths, "shape")
        return (Tensor(),)
    made = _filled(lengths.values)
    value = call.attribute("value", Tensor((1,), None, (0,)))
    if made.axis is None and len(made.shape or ()) == 1 and isinstance(value, Tensor) and value.values:
        (count,) = made.shape or (0,)
        if isinstance(count, int) and count <= VALUES_MAX:
            return (Tensor(made.shape, None, value.values * count),)
    return (made,)


def _filled(lengths: Lengths) -> Tensor:
    """The same everywhere, in this shape."""
    if MIXED in lengths or lengths.count(BATCH) > 1:
        raise NotProven("makes a shape from the number of rows that isn't understood")
    return Tensor(lengths, lengths.index(BATCH) if BATCH in lengths else None)


def expand(call: Use) -> tuple[Tensor, ...]:
    one, lengths = call.at(0), call.at(1)
    if lengths.values is None or lengths.axis is not None:
        if only_fixed(call):
            return constant(call)
        raise NotProven("expands to a shape that isn't known beforehand")
    target = _filled(lengths.values)
    return elementwise(call._replace(operands=(one, target)))


def reshape(call: Use) -> tuple[Tensor, ...]:
    one, lengths = call.at(0), call.at(1)
    if lengths.axis is not None or lengths.values is None:
        if only_fixed(call):
            return constant(call)
        raise NotProven("has a shape that isn't known beforehand")
    if one.axis is None and one.values is not None and one.shape is not None:
        if lengths.values in ((-1,), (len(one.values),)):
            return (Tensor((len(one.values),), None, one.values),)
        if lengths.values == () or lengths.values == (1,):
            return (Tensor(lengths.values, None, one.values),)
    if one.axis is None:
        if not one.fixed or not lengths.fixed:
            raise NotProven("calculates with the number of rows")
        return (Tensor(opened(len(lengths.values), None, call.fresh)),)
    before = shape_of(one)
    after = _resolved(before, list(lengths.values), call)
    for at, length in enumerate(after):
        if length == BATCH and Product(after[:at]) == Product(before[: one.axis]):
            return (Tensor(after, at),)
    raise NotProven("has a shape in which the rows can't be followed")


def _resolved(before: Lengths, after: list[Length], call: Use) -> Lengths:
    """The shape without zeros and -1."""
    if not call.attribute("allowzero", 0):
        for at, length in enumerate(after):
            if length == 0:
                if at >= len(before):
                    raise NotProven("copies a length that isn't there")
                after[at] = before[at]
    if any(isinstance(n, int) and n <= 0 and n != -1 for n in after):
        raise NotProven("has a shape that isn't understood")
    if -1 in after:
        at = after.index(-1)
        others = after[:at] + after[at + 1 :]
        after[at] = Product(before).over(Product(others), f"{call.fresh}.{at}")
    if MIXED in after or after.count(BATCH) != 1:
        raise NotProven("has a shape in which the rows can't be followed")
    return tuple(after)


def flatten(call: Use) -> tuple[Tensor, ...]:
    one = call.at(0)
    if only_fixed(call):
        return constant(call)
    before = shape_of(one)
    axis = call.attribute("axis", 1)
    axis = axis + len(before) if axis < 0 else axis
    if axis != (one.axis or 0) + 1 or Product(before[: one.axis]) != Product(()):
        raise NotProven("merges the rows with another axis")
    return (Tensor((BATCH, Product(before[axis:]).over(Product(()), call.fresh)), 0),)


def transpose(call: Use) -> tuple[Tensor, ...]:
    one = call.at(0)
    if one.axis is None and one.shape is None and one.fixed:
        return (Tensor(),)
    before = shape_of(one)
    order = call.attribute("perm", None) or list(range(len(before)))[::-1]
    if sorted(order) != list(range(len(before))) or (one.values is not None and not one.fixed):
        raise NotProven("has an order of axes that isn't understood")
    axis = None if one.axis is None else order.index(one.axis)
    return (Tensor(tuple(before[at] for at in order), axis),)


def _axes(call: Use, index: int) -> tuple[int, ...] | None:
    """Named by an attribute in older versions, by an operand in newer ones; None: left out."""
    if call.get(index) is not None:
        return integers(call.get(index), "axes")
    given = call.attribute("axes", None)
    return None if given is None else tuple(given)


def squeeze(call: Use) -> tuple[Tensor, ...]:
    one = call.at(0)
    axes = _axes(call, 1)
    if one.shape is None and only_fixed(call):
        return constant(call)
    before = shape_of(one)
    if axes is None:
        if one.axis is not None or not one.fixed:
            raise NotProven("drops the rows' axis if there is one row")
        return constant(call)
    gone = {normal(axis, len(before)) for axis in axes}
    crosses(one, tuple(gone), "drops")
    return (_without(one, before, gone),)


def _without(one: Tensor, before: Lengths, gone: set[int]) -> Tensor:
    axis = None if one.axis is None else one.axis - sum(at < one.axis for at in gone)
    return Tensor(tuple(n for at, n in enumerate(before) if at not in gone), axis, one.values)


def unsqueeze(call: Use) -> tuple[Tensor, ...]:
    one = call.at(0)
    axes = _axes(call, 1)
    if one.shape is None and only_fixed(call):
        return constant(call)
    before = list(shape_of(one))
    if axes is None:
        raise NotProven("doesn't say which axes it adds")
    rank = len(before) + len(axes)
    new = {normal(axis, rank) for axis in axes}
    if len(new) != len(axes):
        raise NotProven("adds an axis twice")
    kept = [at for at in range(rank) if at not in new]
    after: list[Length] = [1] * rank
    for at, length in zip(kept, before, strict=True):
        after[at] = length
    return (Tensor(tuple(after), None if one.axis is None else kept[one.axis], one.values),)


def concat(call: Use) -> tuple[Tensor, ...]:
    parts = [operand for operand in call.operands if operand is not None]
    if all(p.axis is None and p.values is not None and len(shape_of(p)) == 1 for p in parts):
        values = tuple(v for p in parts for v in p.values or ())
        return (Tensor((len(values),), None, values),)
    if only_fixed(call):
        return constant(call)
    shapes = [shape_of(part) for part in parts]
    rank = len(shapes[0])
    if any(len(s) != rank for s in shapes):
        raise NotProven("joins tensors of different ranks")
    axis = normal(call.attribute("axis", 0), rank)
    rows = {part.axis for part in parts}
    if len(rows) != 1:
        raise NotProven("joins rows with what isn't one")
    crosses(parts[0], (axis,), "joins")
    total: Length = 0
    for index, each in enumerate(shapes):
        total = added(total, each[axis], f"{call.fresh}.{index}")
    after = list(broadcast(shapes, call.fresh))
    after[axis] = total
    return (Tensor(tuple(after), parts[0].axis),)


def split(call: Use) -> tuple[Tensor, ...]:
    one = call.at(0)
    count = len(call.node.outputs)
    evenly = call.get(1) is None and "split" not in call.node.attributes
    if evenly and one.axis is None and one.values and len(one.values) == count:
        return tuple(Tensor((1,), None, (value,)) for value in one.values)
    fixed(call.get(1), "sizes")
    if only_fixed(call):
        return constant(call)
    before = shape_of(one)
    axis = normal(call.attribute("axis", 0), len(before))
    crosses(one, (axis,), "splits")
    sizes: Sequence[Length] = [f"{call.fresh}.{i}" for i in range(count)]
    if call.get(1) is not None:
        sizes = integers(call.get(1), "sizes")
    elif "split" in call.node.attributes:
        sizes = call.node.attributes["split"]
    elif isinstance(before[axis], int) and int(before[axis]) % count == 0:
        sizes = [int(before[axis]) // count] * count
    return tuple(Tensor((*before[:axis], n, *before[axis + 1 :]), one.axis) for n in sizes)


def slice_(call: Use) -> tuple[Tensor, ...]:
    one = call.at(0)
    if call.opset < 10:
        starts: Lengths = tuple(call.attribute("starts", ()))
        ends: Lengths = tuple(call.attribute("ends", ()))
        axes = tuple(call.attribute("axes", range(len(starts))))
        steps: tuple[int, ...] = (1,) * len(starts)
    else:
        for operand in call.operands[1:]:
            fixed(operand, "bounds")
        if one.axis is None and one.values is None and only_fixed(call):
            return constant(call)
        starts, ends = (_bounds(call.get(index)) for index in (1, 2))
        axes = integers(call.get(3), "axes") if call.get(3) else tuple(range(len(starts)))
        steps = integers(call.get(4), "steps") if call.get(4) else (1,) * len(starts)
    if one.axis is None and one.values is not None and len(shape_of(one)) == 1:
        return (_sliced_values(one.values, starts, ends, axes, steps),)
    if only_fixed(call):
        return constant(call)
    after = list(shape_of(one))
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        at = normal(axis, len(after))
        if at == one.axis:
            if (start, step) != (0, 1) or not isinstance(end, int) or end < INT_MAX:
                raise NotProven("picks some of the rows", crosses=True)
        elif (start, step) != (0, 1) or not isinstance(end, int) or end < INT_MAX:
            after[at] = f"{call.fresh}.{at}"
    return (Tensor(tuple(after), one.axis),)


def _bounds(tensor: Tensor | None) -> Lengths:
    if tensor is None or tensor.values is None:
        raise NotProven("has bounds that aren't known beforehand")
    return tensor.values


def _sliced_values(values: Lengths, starts: Lengths, ends: Lengths, axes: Lengths, steps: Lengths) -> Tensor:
    numbers = [n for n in (*starts, *ends, *axes, *steps) if isinstance(n, int)]
    if len(starts) != 1 or len(numbers) != 4 or numbers[2] not in (0, -1) or numbers[3] < 1:
        raise NotProven("picks lengths in a way that isn't understood")
    start, end, _, step = numbers
    picked = values[start:end:step]
    return Tensor((len(picked),), None, picked)


# Picking


def gather(call: Use) -> tuple[Tensor, ...]:
    data, indices = call.at(0), call.at(1)
    if data.values is not None and data.shape == (len(data.values),) and indices.values is not None:
        chosen = integers(indices, "indices")
        size = len(data.values)
        if any(not -size <= i < size for i in chosen):
            raise NotProven("picks a length that isn't there")
        return (Tensor(indices.shape, None, tuple(data.values[i] for i in chosen)),)
    if only_fixed(call):
        return constant(call)
    before, picked = shape_of(data), shape_of(indices)
    axis = normal(call.attribute("axis", 0), len(before))
    after = (*before[:axis], *picked, *before[axis + 1 :])
    if data.axis is None:
        fixed(data, "table")
        return (Tensor(after, None if indices.axis is None else axis + indices.axis),)
    if indices.axis is not None:
        raise NotProven("picks from rows by rows")
    fixed(indices, "indices")
    crosses(data, (axis,), "picks some of")
    return (Tensor(after, data.axis if data.axis < axis else data.axis - 1 + len(picked)),)


def gather_elements(call: Use) -> tuple[Tensor, ...]:
    if only_fixed(call):
        return constant(call)
    data, indices = call.at(0), call.at(1)
    axis = normal(call.attribute("axis", 0), len(shape_of(data)))
    after = shape_of(indices)
    if data.axis is not None and data.axis == indices.axis and axis != data.axis:
        return (Tensor(after, indices.axis),)
    if data.axis is None and data.fixed and indices.axis == axis:
        return (Tensor(after, indices.axis),)
    raise NotProven("picks from rows by place")


def gather_nd(call: Use) -> tuple[Tensor, ...]:
    if only_fixed(call):
        return constant(call)
    data, indices = call.at(0), call.at(1)
    before, picked = shape_of(data), shape_of(indices)
    shared = call.attribute("batch_dims", 0)
    depth = picked[-1] if picked else 0
    if not isinstance(depth, int) or indices.axis is None or indices.axis == len(picked) - 1:
        raise NotProven("picks in a way that isn't understood")
    if not (data.axis == indices.axis < shared or (data.axis is None and data.fixed and shared == 0)):
        raise NotProven("picks from rows by place")
    return (Tensor((*picked[:-1], *before[shared + depth :]), indices.axis),)


def one_hot(call: Use) -> tuple[Tensor, ...]:
    if only_fixed(call):
        return constant(call)
    indices = call.at(0)
    fixed(call.get(1), "depth")
    fixed(call.get(2), "values")
    before = shape_of(indices)
    axis = normal(call.attribute("axis", -1), len(before) + 1)
    after = (*before[:axis], f"{call.fresh}.{axis}", *before[axis:])
    return (Tensor(after, None if indices.axis is None else indices.axis + (axis <= indices.axis)),)


def pad(call: Use) -> tuple[Tensor, ...]:
    if only_fixed(call):
        return constant(call)
    one = call.at(0)
    after = list(shape_of(one))
    given = call.attribute("pads", None)
    pads = tuple(given) if given is not None else integers(call.get(1), "pads")
    fixed(call.get(2), "value")
    axes = integers(call.get(3), "axes") if call.get(3) else tuple(range(len(after)))
    for index, axis in enumerate(axes):
        at = normal(axis, len(after))
        widths = pads[index], pads[index + len(axes)]
        if at == one.axis and widths != (0, 0):
            raise NotProven("adds rows", crosses=True)
        if widths != (0, 0):
            after[at] = added(after[at], sum(widths), f"{call.fresh}.{at}")
    return (Tensor(tuple(after), one.axis),)


def tile(call: Use) -> tuple[Tensor, ...]:
    if only_fixed(call):
        return constant(call)
    one = call.at(0)
    before = shape_of(one)
    repeats = call.at(1)
    fixed(repeats, "repeats")
    if one.axis is None or repeats.values is None or repeats.values[one.axis] != 1:
        raise NotProven("repeats rows, or it isn't known that it doesn't")
    pairs = zip(before, repeats.values, strict=True)
    after = (n if r == 1 else f"{call.fresh}.{at}" for at, (n, r) in enumerate(pairs))
    return (Tensor(tuple(after), one.axis),)


def resize(call: Use) -> tuple[Tensor, ...]:
    one = call.at(0)
    before = first_axis(one)
    roi = call.get(1) if call.node.op == "Resize" and call.opset > 10 else None
    if roi is not None and roi.shape != (0,):
        raise NotProven("cuts a region out")
    places = (2, 3) if call.node.op == "Resize" and call.opset > 10 else (1,)
    given = [t for t in map(call.get, places) if t is not None and t.shape != (0,)]
    if len(given) != 1 or "axes" in call.node.attributes:
        raise NotProven("has sizes that aren't known beforehand")
    by_size = len(places) == 2 and given[0] is call.get(3)
    kept = (given[0].values or (0,))[0] == BATCH if by_size else given[0].keeps_first
    if not kept:
        raise NotProven("changes the number of rows, or it isn't known that it doesn't")
    return (Tensor(opened(len(before), 0, call.fresh), 0),)


def trilu(call: Use) -> tuple[Tensor, ...]:
    if only_fixed(call):
        return (Tensor(call.at(0).shape),)
    one = call.at(0)
    rank = len(shape_of(one))
    fixed(call.get(1), "diagonal")
    crosses(one, (rank - 2, rank - 1), "cuts a triangle out of")
    return (Tensor(one.shape, one.axis),)


def range_(call: Use) -> tuple[Tensor, ...]:
    only_fixed(call)
    return (Tensor((f"{call.fresh}.0",)),)


# Along axes


def reduce(call: Use) -> tuple[Tensor, ...]:
    one = call.at(0)
    if one.axis is None and one.fixed:
        return constant(call)
    before = shape_of(one)
    axes = _axes(call, 1)
    if not axes:
        if call.attribute("noop_with_empty_axes", 0):
            return (Tensor(one.shape, one.axis),)
        axes = tuple(range(len(before)))
    return (_reduced(call, one, axes),)


def _reduced(call: Use, one: Tensor, axes: Sequence[int]) -> Tensor:
    before = shape_of(one)
    gone = {normal(axis, len(before)) for axis in axes}
    crosses(one, tuple(gone), "works along")
    if not one.fixed and one.axis is None:
        raise NotProven("calculates with the number of rows")
    if call.attribute("keepdims", 1):
        return Tensor(tuple(1 if at in gone else n for at, n in enumerate(before)), one.axis)
    return _without(Tensor(one.shape, one.axis), before, gone)


def arg(call: Use) -> tuple[Tensor, ...]:
    if only_fixed(call):
        return constant(call)
    return (_reduced(call, call.at(0), (call.attribute("axis", 0),)),)


def along(axis: int) -> Rule:
    """Works along one axis, `axis` by default."""

    def rule(call: Use) -> tuple[Tensor, ...]:
        if only_fixed(call):
            return (Tensor(call.at(0).shape),)
        one = call.at(0)
        crosses(one, (normal(call.attribute("axis", axis), len(shape_of(one))),), "works along")
        return (Tensor(one.shape, one.axis),)

    return rule


def softmax(call: Use) -> tuple[Tensor, ...]:
    if call.opset >= 13:
        return along(-1)(call)
    if only_fixed(call):
        return (Tensor(call.at(0).shape),)
    one = call.at(0)
    rank = len(shape_of(one))
    first = normal(call.attribute("axis", 1), rank)  # it and all behind it were made one axis
    crosses(one, range(first, rank), "works along")
    return (Tensor(one.shape, one.axis),)


def cumulative(call: Use) -> tuple[Tensor, ...]:
    if only_fixed(call):
        return (Tensor(call.at(0).shape),)
    one = call.at(0)
    axes = integers(call.get(1), "axes")
    crosses(one, [normal(axis, len(shape_of(one))) for axis in axes], "works along")
    return (Tensor(one.shape, one.axis),)


def top_k(call: Use) -> tuple[Tensor, ...]:
    one = call.at(0)
    fixed(call.get(1), "count")
    before = shape_of(one)
    axis = normal(call.attribute("axis", -1), len(before))
    crosses(one, (axis,), "chooses among")
    after = (*before[:axis], f"{call.fresh}.{axis}", *before[axis + 1 :])
    return (Tensor(after, one.axis),) * 2


def trailing_norm(call: Use) -> tuple[Tensor, ...]:
    """LayerNormalization and its like: over all axes from one on."""
    one = call.at(0)
    before = shape_of(one)
    first = normal(call.attribute("axis", -1), len(before))
    for operand in call.operands[1:]:
        fixed(operand, "scale")
        if operand is not None and len(shape_of(operand)) > len(before) - first:
            raise NotProven("gives each row something that depends on its place")
    crosses(one, range(first, len(before)), "works along")
    statistics = Tensor((*before[:first], *(1 for _ in before[first:])), one.axis)
    return (Tensor(one.shape, one.axis), statistics, statistics)[: len(call.node.outputs)]


def mean_variance(call: Use) -> tuple[Tensor, ...]:
    one = call.at(0)
    before = shape_of(one)
    axes = call.attribute("axes", (0, 2, 3))
    crosses(one, [normal(axis, len(before)) for axis in axes], "works along")
    return (Tensor(one.shape, one.axis),)


# Products


def matmul(call: Use, a: Tensor | None = None, b: Tensor | None = None) -> tuple[Tensor, ...]:
    if only_fixed(call):
        return constant(call)
    a, b = a or call.at(0), b or call.at(1)
    left, right = shape_of(a), shape_of(b)
    if not left or not right:
        raise NotProven("multiplies a single number")
    if a.axis == len(left) - 1 or b.axis == max(0, len(right) - 2):
        raise NotProven("adds up over the rows", crosses=True)
    # As NumPy does: a vector gets an axis, which is taken away again.
    wide_left = (1, *left) if len(left) == 1 else left
    wide_right = (*right, 1) if len(right) == 1 else right
    rank = max(len(wide_left), len(wide_right))
    axes = set()
    for operand, shape, wide in ((a, left, wide_left), (b, right, wide_right)):
        if operand.axis is not None:
            axes.add(operand.axis + rank - len(wide) + (len(shape) == 1 and operand is a))
    if len(axes) > 1:
        raise NotProven("multiplies rows with one another")
    (axis,) = axes
    if a.axis is not None and b.axis is not None and axis >= rank - 2:
        raise NotProven("multiplies rows with one another", crosses=True)
    for operand, wide in ((a, wide_left), (b, wide_right)):
        at = axis - rank + len(wide)
        if operand.axis is None:
            fixed(operand, "factor")
            if axis < rank - 2 and at >= 0 and wide[at] != 1:
                raise NotProven("gives each row something that depends on its place")
    after = [*broadcast([wide_left[:-2], wide_right[:-2]], call.fresh), wide_left[-2], wide_right[-1]]
    after[axis] = BATCH
    gone = {rank - 2} if len(left) == 1 else set()
    gone |= {rank - 1} if len(right) == 1 else set()
    return (_without(Tensor(tuple(after), axis), tuple(after), gone),)


def matmul_integer(call: Use) -> tuple[Tensor, ...]:
    for index in (2, 3):
        _single(call.get(index))
    return matmul(call._replace(operands=call.operands[:2]))


def quantized_matmul(call: Use) -> tuple[Tensor, ...]:
    for index in (1, 2, 4, 5, 6, 7):
        _single(call.get(index))
    return matmul(call._replace(operands=(call.at(0), call.at(3))))


def _single(tensor: Tensor | None) -> None:
    fixed(tensor, "scale")
    if tensor is not None and tensor.shape not in ((), (1,)):
        raise NotProven("has a scale for each row, or it isn't known that it hasn't")


def gemm(call: Use) -> tuple[Tensor, ...]:
    if only_fixed(call):
        return constant(call)
    a, b, c = call.at(0), call.at(1), call.get(2)
    left, right = shape_of(a), shape_of(b)
    fixed(b, "weights")
    if b.axis is not None or len(left) != 2 or len(right) != 2:
        raise NotProven("multiplies by rows")
    if a.axis is None or a.axis == (0 if call.attribute("transA", 0) else 1):
        raise NotProven("adds up over the rows", crosses=a.axis is not None)
    product = Tensor((BATCH, right[0 if call.attribute("transB", 0) else 1]), 0)
    return elementwise(call._replace(operands=(product, c) if c is not None else (product,)))


def einsum(call: Use) -> tuple[Tensor, ...]:
    if only_fixed(call):
        return constant(call)
    equation = str(call.attribute("equation", "")).replace(" ", "")
    terms, arrow, result = equation.partition("->")
    parts = terms.split(",")
    if not arrow or "." in equation or len(parts) != len(call.operands):
        raise NotProven("has an equation that isn't understood")
    letters = set()
    for part, operand in zip(parts, (call.at(i) for i in range(len(parts))), strict=True):
        if len(part) != len(shape_of(operand)) or len(set(part)) != len(part):
            raise NotProven("has an equation that isn't understood")
        if operand.axis is not None:
            letters.add(part[operand.axis])
    if len(letters) != 1 or result.count(min(letters)) != 1:
        raise NotProven("multiplies rows with one another")
    (letter,) = letters
    for part, operand in zip(parts, (call.at(i) for i in range(len(parts))), strict=True):
        if operand.axis is None:
            fixed(operand, "factor")
            if letter in part:
                raise NotProven("gives each row something that depends on its place")
    axis = result.index(letter)
    return (Tensor(opened(len(result), axis, call.fresh), axis),)


# Images, sequences, quantization


def spatial(call: Use) -> tuple[Tensor, ...]:
    """Rows first, then channels: convolutions, pooling, normalization with known statistics."""
    if only_fixed(call):
        return constant(call)
    before = first_axis(call.at(0))
    if len(before) < 2:
        raise NotProven("has no channels")
    for operand in call.operands[1:]:
        fixed(operand, "weights")
    if any(call.node.outputs[1:]):  # places in MaxPool's second output count over all rows
        raise NotProven("has a second output")
    return (Tensor((BATCH, *_spatial_rest(call, before)), 0),) * len(call.node.outputs)


def _spatial_rest(call: Use, before: Lengths) -> Lengths:
    op = call.node.op
    if op.startswith("Global"):
        return (before[1], *(1 for _ in before[2:]))
    if op in ("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN"):
        return before[1:]
    weights: Lengths | None = None
    if op.endswith("Conv") or op == "ConvInteger":
        operand = call.get(3 if op == "QLinearConv" else 1)
        weights = operand.shape if operand is not None and operand.shape else None
    elif "Pool" not in op:
        return opened(len(before), 0, call.fresh)[1:]
    channels = weights[0] if weights else before[1] if "Pool" in op else f"{call.fresh}.1"
    kernel = call.attribute("kernel_shape", weights[2:] if weights else None)
    return (channels, *_windows(call, before[2:], kernel))


def _windows(call: Use, lengths: Lengths, kernel: Sequence[Length] | None) -> Lengths:
    """How many windows of this size there are along each spatial axis."""
    rank = len(lengths)
    if call.attribute("auto_pad", "NOTSET") != "NOTSET" or call.attribute("ceil_mode", 0) or not kernel:
        return opened(rank + 2, 0, call.fresh)[2:]
    strides, dilations = (call.attribute(name, [1] * rank) for name in ("strides", "dilations"))
    pads = call.attribute("pads", [0] * 2 * rank)
    made: list[Length] = []
    for at, (length, size) in enumerate(zip(lengths, kernel, strict=True)):
        if isinstance(length, int) and isinstance(size, int):
            room = length + pads[at] + pads[at + rank] - dilations[at] * (size - 1) - 1
            made.append(room // strides[at] + 1)
        else:
            made.append(f"{call.fresh}.{at + 2}")
    return tuple(made)


def batch_norm(call: Use) -> tuple[Tensor, ...]:
    if call.attribute("training_mode", 0):
        raise NotProven("is in training mode", crosses=True)
    return spatial(call)


def grid_sample(call: Use) -> tuple[Tensor, ...]:
    before = first_axis(call.at(0))
    first_axis(call.at(1))
    return (Tensor(opened(len(before), 0, call.fresh), 0),)


def recurrent(call: Use) -> tuple[Tensor, ...]:
    one = call.at(0)
    batch = 0 if call.attribute("layout", 0) else 1
    if len(shape_of(one)) != 3 or one.axis not in (0, 1):
        raise NotProven("doesn't work on rows")
    if one.axis != batch:
        raise NotProven("takes the rows for steps of time", crosses=True)
    expected = {4: 0, 5: batch, 6: batch}
    for index, operand in enumerate(call.operands[1:], 1):
        if operand is not None and operand.axis != expected.get(index):
            raise NotProven("has a state that isn't one for each row")
        if operand is not None and operand.axis is None:
            fixed(operand, "weights")
    after = 0 if batch == 0 else 2
    whole = Tensor(opened(4, after, call.fresh), after)
    last = Tensor(opened(3, batch, call.fresh), batch)
    return (whole, last, last)[: len(call.node.outputs)]


def quantize(call: Use) -> tuple[Tensor, ...]:
    if only_fixed(call):
        return (Tensor(call.at(0).shape),)
    one = call.at(0)
    rank = len(shape_of(one))
    for operand in call.operands[1:]:
        fixed(operand, "scale")
        lengths = shape_of(operand) if operand is not None else ()
        if lengths in ((), (1,)):
            continue
        axis = normal(call.attribute("axis", 1), rank)
        if len(lengths) != 1 or axis == one.axis or call.attribute("block_size", 0):
            raise NotProven("has a scale for each row, or it isn't known that it hasn't")
    return (Tensor(one.shape, one.axis),)


def couples(how: str) -> Rule:
    def rule(call: Use) -> tuple[Tensor, ...]:
        if only_fixed(call):
            return constant(call)
        raise NotProven(how, crosses=True)

    return rule


# ai.onnx.ml: a table of rows and columns


def columns(*ranks: int) -> Rule:
    """Row by row on a table of rows and columns, with results of these ranks."""

    def rule(call: Use) -> tuple[Tensor, ...]:
        for operand in call.operands:
            if operand is not None:
                first_axis(operand, 2)
        count = len(call.node.outputs)
        return tuple(Tensor(opened(rank, 0, f"{call.fresh}.{i}"), 0) for i, rank in enumerate(ranks[:count]))

    return rule


def feature_extractor(call: Use) -> tuple[Tensor, ...]:
    one, indices = call.at(0), call.at(1)
    before = shape_of(one)
    if one.axis is None and one.fixed and Product(shape_of(indices)) == Product((BATCH,)):
        lead = before[:-1] or (1,)  # a table of labels, and one of them for each row
        return (Tensor((*lead, BATCH), len(lead)),)
    fixed(indices, "indices")
    if one.axis is None or len(before) < 2 or one.axis == len(before) - 1:
        raise NotProven("picks some of the rows")
    return (Tensor((*before[:-1], f"{call.fresh}.0"), one.axis),)


def one_hot_encoder(call: Use) -> tuple[Tensor, ...]:
    one = call.at(0)
    if one.axis is None:
        raise NotProven("doesn't work on rows")
    return (Tensor((*shape_of(one), f"{call.fresh}.0"), one.axis),)


def zip_map(call: Use) -> tuple[Tensor, ...]:
    """A sequence of maps, one for each row: nothing in the table reads one."""
    first_axis(call.at(0))
    return (Tensor((BATCH,), 0),)


TABLE: dict[tuple[str, str], Entry] = {}
_LENGTHS = frozenset(
    {arithmetic, cast, concat, constant_of_shape, expand, gather, identity, reshape, resize, shape, size}
    | {slice_, split, squeeze, transpose, unsqueeze, where}
)


def _enter(rule: Rule, operators: str, attributes: str = "", domain: str = "") -> None:
    for operator in operators.split():
        TABLE[(domain, operator)] = Entry(rule, frozenset(attributes.split()), rule in _LENGTHS)


_ELEMENTWISE = """
    Abs Neg Relu Sigmoid Tanh Erf Exp Log Sqrt Reciprocal Floor Ceil Round Sign Not IsNaN Sin Cos Tan Asin
    Acos Atan Sinh Cosh Asinh Acosh Atanh Softplus Softsign HardSwish Mish BitwiseNot
"""
_REDUCTIONS = """
    ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
    ReduceSumSquare
"""
_RESIZING = """
    antialias axes coordinate_transformation_mode cubic_coeff_a exclude_outside extrapolation_value
    keep_aspect_ratio_policy mode nearest_mode
"""
_RECURRENT = """
    activation_alpha activation_beta activations clip direction hidden_size input_forget layout
    linear_before_reset
"""
_WINDOW = "auto_pad ceil_mode count_include_pad dilations group kernel_shape pads strides storage_order p"
_VALUES = "value value_int value_ints value_float value_floats value_string value_strings"

_enter(identity, "Identity")
_enter(unary, _ELEMENTWISE)
_enter(unary, "LeakyRelu Elu Celu Selu ThresholdedRelu HardSigmoid Swish", "alpha beta gamma")
_enter(unary, "Gelu", "approximate")
_enter(unary, "IsInf", "detect_negative detect_positive")
_enter(unary, "Shrink", "bias lambd")
_enter(cast, "Cast", "to saturate round_mode")
_enter(cast_like, "CastLike", "saturate round_mode")
_enter(unary, "Gelu QuickGelu", "alpha", "com.microsoft")
_enter(clip, "Clip", "min max")
_enter(arithmetic, "Add Sub Mul Div Equal")
_enter(elementwise, "And Or Xor Less Greater LessOrEqual GreaterOrEqual PRelu Min Max Sum Mean Pow")
_enter(elementwise, "BitwiseAnd BitwiseOr BitwiseXor")
_enter(elementwise, "Mod", "fmod")
_enter(elementwise, "BitShift", "direction")
_enter(where, "Where")
_enter(dropout, "Dropout", "ratio seed")

_enter(shape, "Shape", "start end")
_enter(size, "Size")
_enter(made_constant, "Constant", _VALUES)
_enter(constant_of_shape, "ConstantOfShape", "value")
_enter(expand, "Expand")
_enter(reshape, "Reshape", "allowzero")
_enter(flatten, "Flatten", "axis")
_enter(transpose, "Transpose", "perm")
_enter(squeeze, "Squeeze", "axes")
_enter(unsqueeze, "Unsqueeze", "axes")
_enter(concat, "Concat", "axis")
_enter(split, "Split", "axis split num_outputs")
_enter(slice_, "Slice", "starts ends axes")
_enter(gather, "Gather", "axis")
_enter(gather_elements, "GatherElements", "axis")
_enter(gather_nd, "GatherND", "batch_dims")
_enter(one_hot, "OneHot", "axis")
_enter(pad, "Pad", "mode pads value")
_enter(tile, "Tile")
_enter(resize, "Resize Upsample", _RESIZING)
_enter(trilu, "Trilu", "upper")
_enter(range_, "Range")

_enter(reduce, _REDUCTIONS, "axes keepdims noop_with_empty_axes")
_enter(arg, "ArgMax ArgMin", "axis keepdims select_last_index")
_enter(softmax, "Softmax LogSoftmax Hardmax", "axis")
_enter(along(-1), "LpNormalization", "axis p")
_enter(cumulative, "CumSum", "exclusive reverse")
_enter(top_k, "TopK", "axis largest sorted")
_enter(trailing_norm, "LayerNormalization RMSNormalization", "axis epsilon stash_type")
_enter(mean_variance, "MeanVarianceNormalization", "axes")
_enter(matmul, "MatMul")
_enter(matmul_integer, "MatMulInteger")
_enter(quantized_matmul, "QLinearMatMul")
_enter(gemm, "Gemm", "alpha beta transA transB")
_enter(einsum, "Einsum", "equation")

_enter(spatial, "Conv ConvInteger QLinearConv MaxPool AveragePool LpPool", _WINDOW)
_enter(spatial, "ConvTranspose", f"{_WINDOW} output_padding output_shape")
_enter(spatial, "GlobalAveragePool GlobalMaxPool GlobalLpPool", "p")
_enter(spatial, "InstanceNormalization GroupNormalization", "epsilon num_groups stash_type")
_enter(spatial, "LRN", "alpha beta bias size")
_enter(spatial, "DepthToSpace SpaceToDepth", "blocksize mode")
_enter(batch_norm, "BatchNormalization", "epsilon momentum spatial training_mode")
_enter(grid_sample, "GridSample", "align_corners mode padding_mode")
_enter(recurrent, "LSTM GRU RNN", _RECURRENT)
_enter(quantize, "QuantizeLinear DequantizeLinear", "axis block_size saturate output_dtype precision")
_enter(couples("takes its scale from all rows together"), "DynamicQuantizeLinear")
_enter(couples("picks among all rows"), "NonZero Compress Unique NonMaxSuppression", "axis sorted")

_ML = "ai.onnx.ml"
_POST = "post_transform"
_IMPUTED = "imputed_value_floats imputed_value_int64s replaced_value_float replaced_value_int64"
_CLASSES = "classlabels_ints classlabels_int64s classlabels_strings"
_LINEAR = f"coefficients intercepts multi_class targets {_POST}"
_SUPPORT = f"""
    coefficients kernel_params kernel_type n_supports one_class prob_a prob_b rho support_vectors
    vectors_per_class {_POST}
"""
_TREES = f"""
    nodes_falsenodeids nodes_featureids nodes_hitrates nodes_hitrates_as_tensor
    nodes_missing_value_tracks_true nodes_modes nodes_nodeids nodes_treeids nodes_truenodeids nodes_values
    nodes_values_as_tensor base_values base_values_as_tensor aggregate_function n_targets target_ids
    target_nodeids target_treeids target_weights target_weights_as_tensor class_ids class_nodeids
    class_treeids class_weights class_weights_as_tensor {_POST}
"""
_FLAT_TREES = f"""
    aggregate_function leaf_targetids leaf_weights membership_values n_targets nodes_falseleafs
    nodes_falsenodeids nodes_featureids nodes_hitrates nodes_missing_value_tracks_true nodes_modes
    nodes_splits nodes_trueleafs nodes_truenodeids tree_roots {_POST}
"""
_LABELS = """
    classes_strings default_float default_int64 default_string default_tensor keys_floats keys_int64s
    keys_strings keys_tensor values_floats values_int64s values_strings values_tensor
"""
_enter(columns(2), "Scaler", "offset scale", _ML)
_enter(columns(2), "Normalizer", "norm", _ML)
_enter(columns(2), "Imputer", _IMPUTED, _ML)
_enter(columns(2), "LinearRegressor", _LINEAR, _ML)
_enter(columns(1, 2), "LinearClassifier", f"{_LINEAR} {_CLASSES}", _ML)
_enter(columns(2), "SVMRegressor", _SUPPORT, _ML)
_enter(columns(1, 2), "SVMClassifier", f"{_SUPPORT} {_CLASSES}", _ML)
_enter(columns(2), "TreeEnsembleRegressor", _TREES, _ML)
_enter(columns(1, 2), "TreeEnsembleClassifier", f"{_TREES} {_CLASSES}", _ML)
_enter(columns(2), "TreeEnsemble", _FLAT_TREES, _ML)
_enter(columns(2), "FeatureVectorizer", "inputdimensions", _ML)
_enter(feature_extractor, "ArrayFeatureExtractor", "", _ML)
_enter(unary, "Binarizer", "threshold", _ML)
_enter(unary, "LabelEncoder", _LABELS, _ML)
_enter(unary, "CategoryMapper", "cats_int64s cats_strings default_int64 default_string", _ML)
_enter(one_hot_encoder, "OneHotEncoder", "cats_int64s cats_strings zeros", _ML)
_enter(zip_map, "ZipMap", _CLASSES, _ML)
