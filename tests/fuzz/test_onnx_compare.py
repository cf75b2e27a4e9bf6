"""A sample of `make compare-onnx`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx_compare


def test_answers_are_those_of_onnx_runtime(tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    wrong = [line for seed in range(60) for line in onnx_compare.run(seed, 6, tmp_path, outcomes)]
    assert not wrong
    assert sum(outcomes[form] for form in onnx_compare.FORMS) > 300
    assert all(outcomes[form] for form in onnx_compare.FORMS)
