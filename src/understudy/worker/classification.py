"""An output as its best classes: Triton's extension `classification` of the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from understudy.wire.tensors import Array


def best_classes(array: Array, count: int, *, batched: bool, labels: Sequence[str] = ()) -> Array:
    """The `count` largest values of each row as BYTES elements `value:index`, largest first.

    With `labels` of the columns, `value:index:label`.

    Among equals the lower index comes first. Fewer than `count` if a row has fewer elements. An `array`
    that isn't `batched` is one row, whatever its shape; the index counts its elements in row-major order.
    """
    rows = array.reshape(len(array) if batched else 1, -1)
    width = rows.shape[1]
    # Sorted from behind, so that a stable sort leaves equals in the order wanted.
    order = width - 1 - np.argsort(rows[:, ::-1], axis=1, kind="stable")[:, ::-1][:, :count]
    form = "{:f}:{}" if array.dtype.kind == "f" else "{:d}:{}"
    classes = np.empty(order.shape, dtype=object)
    for row, indices in enumerate(order.tolist()):
        values = rows[row, indices].tolist()
        texts = [form.format(value, index) for value, index in zip(values, indices, strict=True)]
        if len(labels) == width:
            texts = [f"{text}:{labels[index]}" for text, index in zip(texts, indices, strict=True)]
        classes[row, :] = texts
    return classes if batched else classes[0]
