"""Rows to rehearse with: variations of the app's own, and rows drawn for the signature.

Which values a model takes is not known, so rows come in kinds, from likely to extreme. A model may refuse
any of them. Deterministic: the same signature and probe give the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from understudy.wire.records import TensorSpec
from understudy.wire.tensors import DATATYPES, FLOATS, Array, round_to_bf16

Row = dict[str, Array]  # each array one long in its first dimension
OPEN_LENGTH = 5  # of a dimension without a fixed length, where the probe's row isn't the pattern
SEED = 20_260_801
_WORDS = ("a", "the", "night", "watchman", "42", "x" * 40, "élan", "7.5")

_Draw = Callable[[np.random.Generator, TensorSpec, tuple[int, ...]], Array]


def probe_rows(inputs: dict[str, Array]) -> list[Row]:
    """The app's own rows, if its inputs have as many rows as each other."""
    lengths = {len(array) for array in inputs.values() if array.ndim}
    if len(lengths) != 1 or any(not array.ndim for array in inputs.values()):
        return []
    return [{name: array[i : i + 1].copy() for name, array in inputs.items()} for i in range(lengths.pop())]


def draw_rounds(inputs: tuple[TensorSpec, ...], own: list[Row], count: int) -> Iterator[list[Row]]:
    """Rounds of `count` rows that may share a batch: their inner lengths are equal within a round."""
    generator = np.random.default_rng(SEED)
    varied = [_near, _shuffled]
    if own:
        yield (
            own[:count]
            + [varied[i % 2](generator, inputs, own[i % len(own)]) for i in range(count)][
                : max(0, count - len(own))
            ]
        )
    open_ended = any(-1 in spec.shape[1:] for spec in inputs)
    shapes = [_shapes(inputs, own[0] if own else None, None)]
    if open_ended:
        shapes.append(_shapes(inputs, None, OPEN_LENGTH))
    for turn in range(1_000):
        inner = shapes[turn % len(shapes)]
        if turn % 3 == 0 and turn:  # what all rows of a batch have in common may be what couples them
            like = {s.name: _drawn(generator, s, inner[s.name], _usual) for s in inputs}
            like = own[turn // 3 % len(own)] if own and turn % 2 else like
            yield [_alike(inputs, like, i) for i in range(count)]
            continue
        kinds = [_KINDS[(turn + i) % len(_KINDS)] for i in range(count)]
        if turn % 3 == 1:  # all of one kind: a model that takes no other has its round too
            kinds = [_KINDS[turn // 3 % len(_KINDS)]] * count
        elif turn % 3 == 2 and own:
            yield [varied[i % 2](generator, inputs, own[i % len(own)]) for i in range(count)]
            continue
        yield [{s.name: _drawn(generator, s, inner[s.name], kind) for s in inputs} for kind in kinds]


def extreme_rows(inputs: tuple[TensorSpec, ...], like: Row) -> list[Row]:
    """Neighbours of `like`, of its shape, that a model would notice if it noticed any."""
    generator = np.random.default_rng(SEED)
    return [
        {s.name: _drawn(generator, s, like[s.name].shape[1:], kind) for s in inputs}
        for kind in (_large, _small, _constant)
    ]


def _shapes(
    inputs: tuple[TensorSpec, ...], row: Row | None, length: int | None
) -> dict[str, tuple[int, ...]]:
    if row is not None:
        return {name: array.shape[1:] for name, array in row.items()}
    return {s.name: tuple((length or 1) if n == -1 else n for n in s.shape[1:]) for s in inputs}


def _drawn(generator: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...], kind: _Draw) -> Array:
    return _as(kind(generator, spec, (1, *shape)), spec.datatype)


def _as(values: Array, datatype: str) -> Array:
    dtype = DATATYPES[datatype]
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.clip(np.round(values), float(limits.min), min(float(limits.max), 2.0**62))
    elif dtype == np.float16:
        values = np.clip(values, -60_000.0, 60_000.0)
    made = values.astype(dtype)
    return round_to_bf16(made) if datatype == "BF16" else made


def _texts(generator: np.random.Generator, shape: tuple[int, ...], words: int) -> Array:
    made = np.empty(shape, dtype=object)
    for at in np.ndindex(*shape):
        made[at] = " ".join(generator.choice(_WORDS, size=words))
    return made


def _usual(generator: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    if spec.datatype == "BYTES":
        return _texts(generator, shape, int(generator.integers(1, 6)))
    if spec.datatype in FLOATS:
        return generator.normal(size=shape)
    return generator.integers(0, 10 if spec.datatype != "BOOL" else 2, size=shape)


def _positive(generator: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    if spec.datatype == "BYTES":
        made = np.empty(shape, dtype=object)
        for at in np.ndindex(*shape):
            made[at] = str(int(generator.integers(0, 1000)))
        return made
    if spec.datatype in FLOATS:
        return generator.uniform(0.0, 1.0, size=shape)
    return generator.integers(0, 2, size=shape)


def _wide(generator: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    if spec.datatype == "BYTES":
        return _texts(generator, shape, int(generator.integers(10, 40)))
    if spec.datatype in FLOATS:
        return generator.normal(scale=100.0, size=shape)
    return generator.integers(0, 100 if spec.datatype != "BOOL" else 2, size=shape)


def _large(generator: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    if spec.datatype == "BYTES":
        return _texts(generator, shape, 60)
    if spec.datatype in FLOATS:
        return generator.choice(np.array([-1e4, 1e4]), size=shape)
    return generator.integers(0, 1000 if spec.datatype != "BOOL" else 2, size=shape)


def _small(generator: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    if spec.datatype == "BYTES":
        return np.full(shape, "", dtype=object)
    if spec.datatype in FLOATS:
        return generator.normal(scale=1e-3, size=shape)
    return np.zeros(shape)


def _constant(generator: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    """The same everywhere, as a blank image or a column that was forgotten."""
    if spec.datatype == "BYTES":
        return _texts(generator, shape, 1)
    value = float(generator.choice(np.array([-3.0, 0.0, 1.0, 3.0, 255.0])))
    return np.full(shape, abs(value) % 2 if spec.datatype == "BOOL" else value)


_KINDS: tuple[_Draw, ...] = (_usual, _positive, _wide, _large, _usual, _small, _constant)


def _alike(inputs: tuple[TensorSpec, ...], row: Row, number: int) -> Row:
    """The same but for a little, so that whatever holds for one holds for all of them."""
    return {
        spec.name: _as(row[spec.name] * (1.0 + 1e-3 * number), spec.datatype)
        if spec.datatype in FLOATS
        else row[spec.name]
        for spec in inputs
    }


def _near(generator: np.random.Generator, inputs: tuple[TensorSpec, ...], row: Row) -> Row:
    """A row like this one: numbers a little off, texts longer or shorter."""
    return {spec.name: _nearby(generator, spec, row[spec.name]) for spec in inputs}


def _nearby(generator: np.random.Generator, spec: TensorSpec, array: Array) -> Array:
    if spec.datatype == "BYTES":
        made = np.empty(array.shape, dtype=object)
        for at in np.ndindex(*array.shape):
            text: object = array[at]
            words = text.split() if isinstance(text, str) else []
            keep = int(generator.integers(1, len(words) + 1)) if words else 0
            made[at] = " ".join(
                [*words[:keep], *generator.choice(_WORDS, size=int(generator.integers(0, 8)))]
            )
        return made
    if spec.datatype in FLOATS:
        scale = float(np.abs(array).max(initial=0.0)) * 0.3 or 1.0
        return _as(array + generator.normal(scale=scale, size=array.shape), spec.datatype)
    if spec.datatype == "BOOL":
        return generator.integers(0, 2, size=array.shape).astype(bool)
    low, high = int(array.min(initial=0)), int(array.max(initial=0))
    return _as(generator.integers(low, high + 1, size=array.shape), spec.datatype)


def _shuffled(generator: np.random.Generator, inputs: tuple[TensorSpec, ...], row: Row) -> Row:
    """The same values in another order."""
    made = {}
    for spec in inputs:
        flat = row[spec.name].ravel().copy()
        generator.shuffle(flat)
        made[spec.name] = flat.reshape(row[spec.name].shape)
    return made
