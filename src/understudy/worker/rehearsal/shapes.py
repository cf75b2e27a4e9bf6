"""Which shapes a model really returns, for inputs of other lengths too.

What a file says of its outputs is a hint: exporters bake in what they saw. A manifest's word counts more, and
what the runtime returned counts most.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from time import perf_counter

import msgspec
import numpy as np

from understudy.wire.records import TensorSpec
from understudy.wire.tensors import Array, fits, show_shape
from understudy.worker.guard import restored
from understudy.worker.runtimes.contract import Axes

Tensors = dict[str, Array]
RUNS_S_MAX = 5.0  # no further run begins after this
AXES_MAX = 8  # made longer, one at a time
ELEMENTS_MAX = 4_000_000  # of an input that was made longer


def corrected(
    predict: Callable[[Tensors], Tensors],
    probe: Tensors,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    axes: Axes,
) -> tuple[tuple[TensorSpec, ...], tuple[str, ...]]:
    """`outputs` as they are returned for `probe` and longer ones, and a note for each that had to change."""
    seen: dict[str, list[tuple[int, ...]]] = {spec.name: [] for spec in outputs}
    deadline_s = perf_counter() + RUNS_S_MAX
    for tensors in _lengthened(probe, inputs, axes):
        if perf_counter() > deadline_s:
            break
        try:
            returned = predict(dict(tensors))
        except Exception:  # this length isn't one that the model takes
            if tensors is probe:
                raise
            continue
        for name, shapes in seen.items():
            if isinstance(returned.get(name), np.ndarray):
                shapes.append(returned[name].shape)
    specs, notes = [], []
    for spec in outputs:
        found, note = _judged(spec, seen[spec.name])
        specs.append(found)
        notes += [note] if note else []
    return tuple(specs), tuple(notes)


def _lengthened(probe: Tensors, inputs: tuple[TensorSpec, ...], axes: Axes) -> Iterator[Tensors]:
    """`probe`, then it with each open dimension twice as long; dimensions of one name grow together."""
    yield probe
    groups: dict[Hashable, list[tuple[str, int]]] = {}
    for spec in inputs:
        named = axes.get(spec.name, ())
        for index, length in enumerate(spec.shape):
            if length == -1 and spec.name in probe:
                own = (spec.name, index) if index else "rows"
                group = named[index] if index < len(named) and named[index] else own
                groups.setdefault(group, []).append((spec.name, index))
    for together in list(groups.values())[:AXES_MAX]:
        tensors = dict(probe)
        for name, index in together:
            tensors[name] = np.concatenate([tensors[name], tensors[name]], axis=index)
        if all(array.size <= ELEMENTS_MAX for array in tensors.values()):
            yield tensors


def _judged(spec: TensorSpec, shapes: list[tuple[int, ...]]) -> tuple[TensorSpec, str]:
    """The spec that holds for all of `shapes`, and what to say if it is another."""
    if not shapes or (not spec.hint and all(_kept(shape, spec.shape) for shape in shapes)):
        return spec, ""
    shape = _common(spec.shape, shapes)
    if shape == spec.shape:
        return spec, ""
    claimed = "the file says" if spec.hint else "it is declared as"
    returned = " and ".join(show_shape(shape) for shape in sorted(set(shapes))[:3])
    note = (
        f"output {spec.name!r}: {claimed} {show_shape(spec.shape)}, the model returned {returned}: "
        f"served as {show_shape(shape)}"
    )
    if spec.hint and not spec.shape:
        note = "" if all(len(seen) == len(shapes[0]) for seen in shapes) else note
    return msgspec.structs.replace(spec, shape=shape, hint=True), note


def _kept(shape: tuple[int, ...], pattern: tuple[int, ...]) -> bool:
    return fits(shape, pattern, length_min=0) or restored(shape, pattern, None) is not None


def _common(claimed: tuple[int, ...], shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Empty where even the rank differs from one run to the next."""
    if len({len(shape) for shape in shapes}) > 1:
        return ()
    lengths = []
    for index, seen in enumerate(zip(*shapes, strict=True)):
        known = claimed[index] if len(claimed) == len(shapes[0]) else seen[0]
        lengths.append(known if all(length == known for length in seen) else -1)
    return tuple(lengths)
