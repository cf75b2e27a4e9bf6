"""Judges what a model returned before anybody gets it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from understudy.wire.errors import Code, InvalidArgument, UnderstudyError
from understudy.wire.records import Finite, TensorSpec
from understudy.wire.tensors import DATATYPES, FLOATS, Array, fits, is_finite, show_shape
from understudy.worker.raised import NOT_FINITE


class _OutputRule:
    __slots__ = ("checked_finite", "datatype", "dtype", "hint", "name", "pattern")

    def __init__(self, spec: TensorSpec) -> None:
        self.name = spec.name
        self.datatype = spec.datatype
        self.dtype = DATATYPES[spec.datatype]
        self.checked_finite = spec.datatype in FLOATS and spec.finite is Finite.REQUIRED
        self.pattern = spec.shape
        self.hint = spec.hint


class Guard:
    """Checks outputs against the signature: all there, right type and promised shape, every float finite.

    `by_rows`: dimension 0 of all inputs and outputs is that of the rows. Costs 1 µs for one small output.
    """

    def __init__(self, outputs: tuple[TensorSpec, ...], *, batched: bool, by_rows: bool = False) -> None:
        self._rules = [_OutputRule(spec) for spec in outputs]
        self._batched = batched
        self._by_rows = by_rows

    def accept(
        self, outputs: Any, inputs: dict[str, Array], rows: int, *, shared: bool = False
    ) -> dict[str, Array]:
        """The declared outputs, in the order of the signature. `shared`: they will be cut by rows.

        Raises OUTPUT_INVALID, or `InvalidArgument` if the output isn't finite because an input wasn't.
        """
        if not isinstance(outputs, dict):
            raise _invalid(f"the model returned {type(outputs).__name__}, not a dict of arrays")
        accepted: dict[str, Array] = {}
        for rule in self._rules:
            array = outputs.get(rule.name)
            if type(array) is not np.ndarray:
                array = _plain(rule.name, array)
            if array.dtype != rule.dtype and not (rule.datatype == "BYTES" and array.dtype.kind in "US"):
                raise _invalid(f"output {rule.name!r} is {array.dtype}, not {rule.datatype} ({rule.dtype})")
            if not rule.hint:
                array = self._shaped(rule, array, rows)
            elif shared and (not array.ndim or len(array) != rows):
                raise _invalid(f"output {rule.name!r} has other than {rows} rows for {rows} rows of input")
            if rule.checked_finite:
                if not is_finite(array):
                    raise _not_finite(rule.name, inputs)
            elif rule.datatype == "BYTES":
                array = _texts(rule.name, array)
            accepted[rule.name] = array
        return accepted

    def _shaped(self, rule: _OutputRule, array: Array, rows: int) -> Array:
        if not fits(array.shape, rule.pattern, length_min=0):
            shape = restored(
                array.shape, rule.pattern, rows if self._batched else None, by_rows=self._by_rows
            )
            if shape is None:
                got, wanted = show_shape(array.shape), show_shape(rule.pattern)
                raise _invalid(f"output {rule.name!r} has shape {got}, which doesn't fit {wanted}")
            array = array.reshape(shape)
        if self._batched and len(array) != rows:
            raise _invalid(f"output {rule.name!r} has {len(array)} rows for {rows} rows of input")
        return array


def restored(
    shape: Sequence[int], pattern: Sequence[int], rows: int | None, *, by_rows: bool = False
) -> tuple[int, ...] | None:
    """`shape` as the pattern has it, if only lengths of 1 are missing or too many: models squeeze them away.

    `rows`: what dimension 0 must be then. `by_rows`: it counts rows, so a single one is no length too many.
    """
    kept = shape[:1] if by_rows and len(shape) >= len(pattern) else ()
    for backwards in (True, False):
        left = [length for length in shape if length != 1]
        found: list[int] = []
        for wanted in reversed(pattern) if backwards else pattern:
            if left and wanted in (-1, left[-1 if backwards else 0]):
                found.append(left.pop(-1 if backwards else 0))
            elif wanted in (-1, 1):
                found.append(1)
            else:
                break
        if backwards:
            found.reverse()
        rows_fit = (rows is None or found[:1] == [rows]) and (not kept or found[:1] == list(kept))
        if not left and len(found) == len(pattern) and rows_fit:
            return tuple(found)
    return None


def _plain(name: str, array: Any) -> Array:
    """NumPy's own kind of array, of which nothing is the model's but its memory."""
    if not isinstance(array, np.ndarray):
        what = "is missing" if array is None else f"is {type(array).__name__}, not an array"
        raise _invalid(f"output {name!r} {what}")
    if isinstance(array, np.ma.MaskedArray):
        raise _invalid(f"output {name!r} is a masked array; fill in what is masked")
    return np.asarray(array)


def _texts(name: str, array: Array) -> Array:
    """`array` if all its elements are text or bytes that can be sent; strings of NumPy's as Python's."""
    elements = array.ravel().tolist()
    if not {str, bytes}.issuperset(map(type, elements)):
        elements = [_text(name, element) for element in elements]
        plain = np.empty(len(elements), dtype=object)
        plain[:] = elements
        array = plain.reshape(array.shape)
    for element in elements:
        if type(element) is str and not element.isascii():
            _check_unicode(name, element)
    return array


def _text(name: str, element: Any) -> str | bytes:
    if isinstance(element, str):
        return str.__str__(element)
    if isinstance(element, bytes):
        return bytes.__getitem__(element, slice(None))
    raise _invalid(f"output {name!r} has elements that are neither text nor bytes")


def _check_unicode(name: str, element: str) -> None:
    try:
        element.encode()
    except UnicodeEncodeError as error:
        raise _invalid(f"output {name!r} has text that is not valid Unicode; return bytes instead") from error


def _not_finite(name: str, inputs: dict[str, Array]) -> UnderstudyError:
    for input_name, array in inputs.items():
        if array.dtype.kind == "f" and not is_finite(array):
            return InvalidArgument(f"input {input_name!r} has NaN or infinity")
    # It may follow from finite values of the caller's: who judges replicas can tell by the reason.
    return _invalid(f"output {name!r} has NaN or infinity", reason=NOT_FINITE)


def _invalid(what: str, **context: str) -> UnderstudyError:
    return UnderstudyError(Code.OUTPUT_INVALID, what, **context)
