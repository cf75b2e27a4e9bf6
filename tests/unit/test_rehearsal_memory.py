"""What inferences cost in memory is found by more and more rows, without a cost that nobody foresaw."""

from __future__ import annotations

from collections.abc import Callable

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


class Process:
    """What a model adds is what `adds_mb` says for its rows."""

    def __init__(self, adds_mb: Callable[[int], float]) -> None:
        self._adds_mb = adds_mb
        self.rows: list[int] = []

    def predict(self, inputs: Tensors) -> Tensors:
        self.rows.append(len(inputs["x"]))
        return {"y": inputs["x"][:, :1]}

    def measured(self, monkeypatch: pytest.MonkeyPatch) -> Appetite:
        monkeypatch.setattr(memory, "reset_peak", lambda: 40.0)
        monkeypatch.setattr(memory, "peak_mb", lambda: 40.0 + self._adds_mb(self.rows[-1]))
        return appetite(self.predict, probe(), INPUTS)


@pytest.mark.parametrize("factor", [5, 10, 100, 1000])
def test_what_grows_with_the_rows_is_measured(factor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Process(lambda rows: 8 * factor * rows / 2**20).measured(monkeypatch)
    assert found.per_byte == pytest.approx(memory.MARGIN * factor, rel=0.01)
    assert found.output_per_byte == pytest.approx(memory.MARGIN / 2)


def test_what_every_inference_takes_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Process(lambda _: 100.0).measured(monkeypatch).per_byte == Appetite().per_byte


def test_what_else_a_process_does_meanwhile_is_not_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Process(lambda rows: rows % 3).measured(monkeypatch).per_byte < 3


def test_a_model_that_compares_every_row_with_every_other_is_never_given_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = Process(lambda rows: rows**2 * 4 / 2**20)
    process.measured(monkeypatch)
    assert process.rows[-1] >= 256
    assert process.rows[-1] ** 2 * 4 <= 256 * 2**20


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
