"""What a manifest promises, held against what was measured."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from understudy.core.controller.promises import check_promises
from understudy.wire.errors import InvalidArgument
from understudy.wire.records import AppVersion, ArtifactRef, BatchingVerdict, Profile, TensorSpec, Variant

BIG = Variant("big", "onnx", ArtifactRef("0" * 64, 1, "b"), 0.9, profile=Profile(40, 60, 20, 30.0))
SMALL = Variant("small", "onnx", ArtifactRef("1" * 64, 1, "s"), 0.8, profile=Profile(40, 10, 20, 3.0))


def check(**fields: Any) -> tuple[str, ...]:
    app = AppVersion("a", 1, (BIG, SMALL), outputs=(TensorSpec("y", "FP32", (-1,)),))
    return check_promises(msgspec.structs.replace(app, **fields))


def test_what_can_be_kept_is_accepted_silently() -> None:
    assert check() == ()
    assert check(objective_ms=30.0, deadline_ms=30.0) == ()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"deadline_ms": 2.0},
            "deadline_ms is 2, and no variant can answer within it: one inference of 'small'",
        ),
        ({"objective_ms": 1.0}, "objective_ms is 1, and no variant keeps it"),
        (
            {"variants": (msgspec.structs.replace(BIG, memory_limit_mb=99.0), SMALL)},
            "'big': memory_limit_mb is 99, and a replica takes 100 MB",
        ),
        (
            {"static": {"outputs": [{"name": "z", "datatype": "FP32", "shape": [1], "data": [0]}]}},
            "static.outputs[0]: the app has no output 'z'",
        ),
    ],
)
def test_what_nobody_could_keep_is_refused_by_the_name_of_the_setting(fields: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(says)):
        check(**fields)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"deadline_ms": 10.0}, "variant 'big' can't answer within deadline_ms, 10"),
        ({"objective_ms": 10.0}, "variant 'big' is never placed"),
        ({"objective_ms": 500.0, "deadline_ms": 100.0}, "deadline_ms is 100, which counts"),
    ],
)
def test_what_some_variants_cant_keep_is_a_warning(fields: Any, says: str) -> None:
    (warning,) = check(**fields)
    assert says in warning


def test_what_rehearsal_saw_of_a_model_is_a_warning() -> None:
    def judged(by: str) -> Any:
        reason = "it took fewer than two different rows, the others were refused (ValueError: boom)"
        return msgspec.structs.replace(BIG, verdict=BatchingVerdict(False, by, reason)), SMALL

    (said,) = check(variants=judged("rehearsal"))
    assert said == (
        "variant 'big' runs one request at a time: it took fewer than two different rows, "
        "the others were refused (ValueError: boom)"
    )
    assert check(variants=judged("setting")) == check(variants=judged("graph")) == ()
