"""What inferences cost in memory is found by more and more rows, without a cost that nobody foresaw."""

from __future__ import annotations

import numpy as np
import pytest

from understudy.wire.records import TensorSpec
from understudy.wire.tensors import Array
from understudy.worker.costs import Appetite
from understudy.worker.rehearsal import memory
from understudy.worker.rehearsal.memory import appetite

INPUTS = (TensorSpec("x", "FP32", (-1, 2)),)
Tensors = dict[str, Array]


def probe(rows: int = 1) -> Tensors:
    return {"x": np.zeros((rows, 2), np.float32)}


def test_what_grows_with_the_rows_is_measured() -> None:
    def predict(inputs: Tensors) -> Tensors:
        hidden = np.ones((len(inputs["x"]), 20), np.float32)  # ten times the input
        return {"y": hidden[:, :1] + inputs["x"][:, :1]}

    found = appetite(predict, probe(), INPUTS)
    assert 10 <= found.per_byte <= 10 * memory.MARGIN * 1.5
    assert found.output_per_byte == pytest.approx(memory.MARGIN / 2)


def test_what_every_inference_takes_does_not_grow() -> None:
    def predict(inputs: Tensors) -> Tensors:
        scratch = np.ones(8_000_000, np.float32)
        return {"y": inputs["x"] + scratch[0]}

    assert appetite(predict, probe(), INPUTS).per_byte < 10


def test_a_model_that_compares_every_row_with_every_other_is_never_given_many() -> None:
    most = 0

    def predict(inputs: Tensors) -> Tensors:
        nonlocal most
        most = max(most, len(inputs["x"]))
        return {"y": (inputs["x"] @ inputs["x"].T + 1).sum(axis=1, keepdims=True)}

    appetite(predict, probe(), INPUTS)
    assert most >= 64
    assert most**2 * 4 <= 256 * 2**20


@pytest.mark.parametrize("power", [1, 2])
def test_a_slow_model_is_not_kept_for_long(power: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(memory, "perf_counter", lambda: now_s)

    def predict(inputs: Tensors) -> Tensors:
        nonlocal now_s
        now_s += 2e-5 * len(inputs["x"]) ** power
        return {"y": inputs["x"]}

    appetite(predict, probe(), INPUTS)
    assert now_s <= 2 * memory.RUN_S_MAX * memory.GROWTH**2


def test_a_model_that_takes_no_more_rows_is_guessed() -> None:
    def predict(inputs: Tensors) -> Tensors:
        if len(inputs["x"]) > 3:
            raise ValueError("at most three")
        return {"y": inputs["x"]}

    assert appetite(predict, probe(3), INPUTS).per_byte == Appetite().per_byte


def test_an_app_with_many_rows_in_its_probe_is_measured_with_them() -> None:
    sizes: list[int] = []

    def predict(inputs: Tensors) -> Tensors:
        sizes.append(len(inputs["x"]))
        return {"y": inputs["x"]}

    appetite(predict, probe(5), INPUTS)
    assert sizes[0] == 5
    assert sizes[-1] == memory.ROWS_MAX
