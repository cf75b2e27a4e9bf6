"""The request that a replica proves itself by: the manifest's, or the first that the model answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np

from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.records import TensorSpec
from understudy.wire.tensors import DATATYPES, Array, show_shape
from understudy.worker.oip import encode_tensors
from understudy.worker.raised import NOT_FINITE, breaks_contract
from understudy.worker.runtimes.contract import load_failed

# Lengths of open dimensions beyond the first: kernels and windows want more than one.
LENGTHS = (1, 8, 64)
RANKS_TRIED = 8  # of inputs whose rank nobody knows
ELEMENTS_MAX = 65_536  # of those that are longer than they must be


class Tried(NamedTuple):
    body: bytes
    what: str  # "zeros of shape [1,3]"; empty for the manifest's own


def probes(declared: dict[str, Any] | None, inputs: tuple[TensorSpec, ...]) -> Iterator[Tried]:
    """The manifest's, or zeros and then ones of growing shapes, each once."""
    if declared is not None:
        yield Tried(msgspec.json.encode(declared), "")
        return
    ranks = range(RANKS_TRIED + 1) if any(spec.hint and not spec.shape for spec in inputs) else (0,)
    seen: set[bytes] = set()
    for length in LENGTHS:
        for rank in ranks:
            for value, name in ((0, "zeros"), (1, "ones")):
                tensors = {
                    spec.name: filled(spec, value, length, rank) for spec in inputs if not spec.optional
                }
                if seen and value == 0 and sum(array.size for array in tensors.values()) > ELEMENTS_MAX:
                    return
                body = encode_tensors(tensors, inputs)
                if body not in seen:
                    seen.add(body)
                    yield Tried(body, f"{name} of {_shapes(tensors)}")


def filled(spec: TensorSpec, value: int, length: int, rank: int) -> Array:
    shape: tuple[int, ...] = (1,) * (rank > 0) + (length,) * (rank - 1)
    if spec.shape:
        first, *others = spec.shape
        shape = (1 if first == -1 else first, *(length if n == -1 else n for n in others))
    if spec.datatype == "BYTES":
        return np.full(shape, "a" if value else "", dtype=object)
    return np.full(shape, value, dtype=DATATYPES[spec.datatype])


def no_probe_passed(failures: list[tuple[Tried, UnderstudyError]]) -> UnderstudyError:
    """What to tell who deploys it: the first failure, and what would help.

    Another request makes no difference where the model answered, but not as its signature says.
    """
    answered = [(tried, error) for tried, error in failures if breaks_contract(error)]
    tried, error = (answered or failures)[0]
    if not tried.what:
        return error
    what = f"{error.message}; the model was asked with {tried.what}"
    if not answered:
        what += ", because the manifest has no probe"
        what += ", and it failed on ones and on longer ones too" if failures[1:] else ""
        what += "; give [probe] inputs = [...]"
        if error.context.get("reason") == NOT_FINITE:
            what += ', or [outputs] finite = "allowed" if NaN and infinity are right'
    failed = UnderstudyError(error.code, what) if error.code is Code.OUT_OF_MEMORY else load_failed(what)
    failed.traceback = error.traceback
    return failed


def note_of(failures: list[tuple[Tried, UnderstudyError]], passed: Tried) -> str:
    tried, error = failures[0]
    return (
        f"the model failed on the probe, which is {tried.what} because the manifest has none; it is probed "
        f"with {passed.what}; give [probe] inputs = [...] if that is no fair request ({error.message})"
    )


def _shapes(tensors: dict[str, Array]) -> str:
    shown = [show_shape(array.shape) for array in tensors.values()]
    if len(shown) == 1:
        return f"shape {shown[0]}"
    return "shapes " + ", ".join(f"{name!r} {shape}" for name, shape in zip(tensors, shown, strict=True))
