"""What a model without a probe in its manifest is asked first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.records import TensorSpec
from understudy.worker.guard import Guard
from understudy.worker.rehearsal.probes import Tried, no_probe_passed, probes

ZEROS, ONES = Tried(b"", "zeros of shape [1,4]"), Tried(b"", "ones of shape [1,4]")


def asked(*inputs: TensorSpec) -> list[str]:
    return [tried.what for tried in probes(None, inputs)]


def test_open_lengths_grow() -> None:
    assert asked(TensorSpec("x", "FP32", (-1, 3, -1))) == [
        f"{name} of shape [1,3,{length}]" for length in (1, 8, 64) for name in ("zeros", "ones")
    ]


def test_an_image_is_asked_as_large_as_it_must_be() -> None:
    assert asked(TensorSpec("x", "FP32", (-1, 3, 224, 224))) == [
        "zeros of shape [1,3,224,224]",
        "ones of shape [1,3,224,224]",
    ]


def test_open_lengths_stop_growing_when_it_is_much() -> None:
    assert asked(TensorSpec("x", "FP32", (-1, -1, -1, 64))) == [
        f"{name} of shape [1,{length},{length},64]" for length in (1, 8) for name in ("zeros", "ones")
    ]


def test_an_unknown_rank_is_searched_for() -> None:
    shapes = asked(TensorSpec("x", "FP32", (), hint=True))
    assert {"zeros of shape []", "zeros of shape [1]", "zeros of shape [1,1,1]"} <= set(shapes)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"z": np.zeros((1, 1), np.float32)}, "output 'y' is missing; "),
        ({"y": np.zeros((1, 1))}, "output 'y' is float64, not FP32 (float32); "),
        ({"y": [[0.0]]}, "output 'y' is list, not an array; "),
        (np.zeros((1, 1), np.float32), "the model returned ndarray, not a dict of arrays; "),
    ],
)
def test_no_other_probe_is_asked_for_where_the_answer_is_the_mistake(answer: Any, says: str) -> None:
    with pytest.raises(UnderstudyError) as raised:
        Guard((TensorSpec("y", "FP32", (-1, 1)),), batched=True).accept(answer, {}, 1)
    own = UnderstudyError(Code.MODEL_FAILED, "the model raised ValueError")
    for failures in ([(ZEROS, raised.value)], [(ZEROS, own), (ONES, raised.value)]):
        told = no_probe_passed(failures)
        assert told.code is Code.LOAD_FAILED
        assert told.message.startswith(says)
        assert "[probe]" not in told.message


def test_what_a_model_raises_comes_before_the_advice() -> None:
    own = UnderstudyError(Code.MODEL_FAILED, "the model raised ValueError: no zeros")
    told = no_probe_passed([(ZEROS, own), (ONES, own)]).message
    assert told.startswith("the model raised ValueError: no zeros; the model was asked with zeros of shape")
    assert told.endswith("it failed on ones and on longer ones too; give [probe] inputs = [...]")
