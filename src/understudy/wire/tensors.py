"""The datatypes of the Open Inference Protocol as NumPy arrays.

BF16 has no NumPy type: such tensors are float32 arrays whose values are representable in bfloat16.
BYTES tensors are object arrays of `str`; an element that is not valid UTF-8 is `bytes`. The only module of
`wire` that needs NumPy; processes that don't look into tensors don't import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from understudy.wire.records import TensorSpec

Array = npt.NDArray[Any]

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
    "BF16": np.dtype(np.float32),
}
FLOATS = frozenset({"FP16", "FP32", "FP64", "BF16"})
RANK_MAX = 32  # NumPy arrays have no more dimensions, in version 1

_count_nonzero = np.count_nonzero
_isfinite = np.isfinite


def fits(shape: Sequence[int], pattern: Sequence[int], length_min: int = 1) -> bool:
    """Whether a tensor of `shape` may be where `pattern` is declared; -1 is any length from `length_min`."""
    if len(shape) != len(pattern):
        return False
    for length, wanted in zip(shape, pattern, strict=True):
        if length < length_min if wanted == -1 else length != wanted:
            return False
    return True


def show_shape(shape: Sequence[int]) -> str:
    """`[1,64]`, as in a request, cut after eight dimensions: a caller may have sent any number of them."""
    shown = ",".join(str(length) for length in shape[:8])
    return f"[{shown},…]" if len(shape) > 8 else f"[{shown}]"


def is_finite(array: Array) -> bool:
    """False if a floating-point array holds NaN or infinity. 0.6 µs for ten values."""
    return bool(_count_nonzero(_isfinite(array)) == array.size)


def round_to_bf16(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The nearest bfloat16 values, ties to even, as float32. Too large becomes infinite; NaN stays NaN."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    values = (rounded & np.uint32(0xFFFF0000)).view(np.float32)
    # Rounding carries a NaN of all ones into the sign bit; keep NaN what it was.
    return np.where(np.isnan(array), array, values).reshape(array.shape)


def zeros(spec: TensorSpec) -> Array:
    """A tensor that `spec` admits, one long where any length is: zeros, false or empty strings."""
    shape = tuple(1 if length == -1 else length for length in spec.shape)
    if spec.datatype == "BYTES":
        return np.full(shape, "", dtype=object)
    return np.zeros(shape, dtype=DATATYPES[spec.datatype])
