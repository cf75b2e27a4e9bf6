"""What a caller gives as a tensor -> the array that is sent. Checked before anything leaves.

The rule for numbers: what keeps its value is converted without a word (Python lists, float64 without a
fraction for an INT64 model, small integers for FP32); a float may be rounded to the model's narrower float,
which is what every trainer did before; whatever else would change a value is refused, and the message shows
the first one. Shapes are never guessed, with one exception that can't be wrong: a column of n values, as
pandas keeps it, for `[-1,1]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from understudy.client.errors import InvalidInput
from understudy.wire.errors import Code
from understudy.wire.records import TensorSpec
from understudy.wire.tensors import DATATYPES, FLOATS, Array, fits, round_to_bf16, show_shape

# The datatype that an array has by itself, for calls without metadata.
OWN_DATATYPES = {dtype: name for name, dtype in DATATYPES.items() if name not in ("BYTES", "BF16")}

TEXTS = "OSTU"  # kinds of arrays whose elements may be text: objects, bytes, StringDType, str


def wrong(name: str, what: str) -> InvalidInput:
    return InvalidInput(Code.INVALID_ARGUMENT, f"input {name!r}: {what}")


def named_inputs(given: Any, specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    """What was given, by name of input. `specs` is empty if the model isn't known."""
    columns = getattr(given, "columns", None)  # of a data frame
    if isinstance(given, Mapping):
        named = {str(name): value for name, value in given.items()}
    elif len(specs) == 1:
        named = {next(iter(specs)): given}
    elif specs and columns is not None:
        named = {name: given[name] for name in specs if name in columns}
    else:
        wanted = f"the model has {_names(specs)}" if specs else "the model's inputs aren't known"
        raise InvalidInput(Code.INVALID_ARGUMENT, f"inputs must be a dict of arrays by name; {wanted}")
    if specs and named.keys() != specs.keys():
        unknown = _names(named.keys() - specs.keys())
        missing = _names({name for name in specs.keys() - named.keys() if not specs[name].optional})
        if not unknown and not missing:
            return named
        what = f"unknown input {unknown}" if unknown else f"missing input {missing}"
        raise InvalidInput(Code.INVALID_ARGUMENT, f"{what}; the model has {_names(specs)}")
    return named


def _names(names: Any) -> str:
    return ", ".join(repr(name) for name in sorted(names))


def to_tensor(name: str, value: Any, spec: TensorSpec | None, datatype: str | None) -> tuple[str, Array]:
    """Datatype and C-contiguous array to send for `value`, anything that NumPy reads.

    `spec`, if the model is known, has the last word; else `datatype`; else the array's own. Raises
    `InvalidInput`.
    """
    array = _read(name, value)
    if array.dtype.name == "bfloat16":  # of ml_dtypes; torch's can't be read by NumPy
        datatype, array = datatype or "BF16", array.astype(np.float32)
    wanted = spec.datatype if spec else datatype or _own_datatype(name, array)
    if array.dtype == np.float64 and wanted in ("INT64", "UINT64") and isinstance(value, list | tuple):
        array = np.array(value, object)  # NumPy reads large integers in lists as floats
    if wanted not in DATATYPES:
        raise wrong(name, f"unknown datatype {wanted!r}; known: {', '.join(DATATYPES)}")
    array = _convert(name, array, wanted)
    if spec is not None:
        array = _fit(name, array, spec.shape)
    return wanted, np.ascontiguousarray(array).reshape(array.shape)


def _read(name: str, value: Any) -> Array:
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise wrong(name, "masked values can't be sent; fill them first")
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:  # ragged; not for NumPy
        raise wrong(name, f"can't be read as an array: {error}") from error


def _own_datatype(name: str, array: Array) -> str:
    if array.dtype.kind in TEXTS:
        return "BYTES"
    own = OWN_DATATYPES.get(array.dtype.newbyteorder("="))
    if own is None:
        raise wrong(name, f"arrays of {array.dtype} can't be sent")
    return own


def _convert(name: str, array: Array, datatype: str) -> Array:
    dtype = DATATYPES[datatype]
    if datatype == "BYTES":
        return _texts(name, array)
    if array.dtype == object:
        array = _numbers(name, array, dtype)
    if array.dtype.kind not in "biuf":
        raise wrong(name, f"the model wants {datatype}, not {array.dtype}")
    if array.dtype == dtype and datatype != "BF16":
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(dtype)
    if datatype == "BF16":
        converted = round_to_bf16(converted)
    _refuse_changed(name, array, converted, datatype)
    return converted


def _numbers(name: str, array: Array, dtype: np.dtype[Any]) -> Array:
    """An array of Python objects, as pandas makes of mixed columns, if all of them are numbers."""
    for value in array.flat:
        if not isinstance(value, int | float | np.number | np.bool_):
            raise wrong(name, f"an element is no number but {type(value).__name__} {_short(value)}")
    try:
        if dtype.kind in "iu" and all(isinstance(value, int) for value in array.flat):
            return array.astype(dtype)  # raises what doesn't fit; a float between would round
        return np.array(array.tolist())
    except (ValueError, OverflowError) as error:
        raise wrong(name, f"can't be read as numbers: {error}") from error


def _refuse_changed(name: str, before: Array, after: Array, datatype: str) -> None:
    roundable = before.dtype.kind == "f" and after.dtype.kind == "f"
    with np.errstate(over="ignore", invalid="ignore"):
        changed = np.isfinite(before) & ~np.isfinite(after) if roundable else _changed(before, after)
    if changed.any():
        first = _short(before[changed].flat[0])
        hint = "" if roundable else "; convert the array yourself if that is what you want"
        raise wrong(name, f"the model wants {datatype}, which can't hold {first} of {before.dtype}{hint}")


def _changed(before: Array, after: Array) -> Array:
    """Where a conversion to or from integers or booleans kept no exact value.

    Back in its own type, a changed value is another one, but for two cases that depend on the processor: a
    sign that wraps both ways, and a value beyond the integers' range that is clipped on its way there.
    """
    changed: Array = (after.astype(before.dtype) != before) | ((after < 0) != (before < 0))
    integer, real = (before, after) if after.dtype.kind == "f" else (after, before)
    if real.dtype.kind == "f" and integer.dtype.kind in "iu":
        top = 2.0 ** (8 * integer.dtype.itemsize - (integer.dtype.kind == "i"))
        changed |= ~np.isfinite(real) | (real >= top)
    return changed


def _texts(name: str, array: Array) -> Array:
    if array.dtype.kind not in TEXTS:
        raise wrong(name, f"the model wants BYTES (str or bytes), not {array.dtype}; see ndarray.astype(str)")
    texts = np.empty(array.shape, object)
    for index, value in np.ndenumerate(array):
        if not isinstance(value, str | bytes):
            raise wrong(name, f"an element is neither str nor bytes but {type(value).__name__}")
        texts[index] = value
    return texts


def _fit(name: str, array: Array, pattern: tuple[int, ...]) -> Array:
    if fits(array.shape, pattern):
        return array
    if array.ndim == 1 and pattern == (-1, 1) and len(array):
        return array[:, np.newaxis]
    hint = ""
    if fits((1, *array.shape), pattern):
        hint = "; for a batch of one row give array[np.newaxis]"
    raise wrong(name, f"shape {show_shape(array.shape)} doesn't fit the model's {show_shape(pattern)}{hint}")


def _short(value: Any) -> str:
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= 60 else text[:60] + "…"


def holds_non_finite(datatype: str, array: Array) -> bool:
    return datatype in FLOATS and not bool(np.isfinite(array).all())
