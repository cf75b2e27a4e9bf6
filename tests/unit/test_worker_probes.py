"""What a model without a probe in its manifest is asked first."""

from __future__ import annotations

from understudy.wire.records import TensorSpec
from understudy.worker.rehearsal.probes import probes


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
