"""What the measurements of a family say together."""

from __future__ import annotations

import msgspec

from understudy.core.controller.profiles import without_disturbance
from understudy.wire.records import ArtifactRef, Profile, Variant


def variant(name: str, size_bytes: int, load_ms: float, runtime: str = "onnx") -> Variant:
    profile = Profile(base_mb=40.0, memory_mb=1.0, load_ms=load_ms, latency_ms=1.0)
    return Variant(name, runtime, ArtifactRef("0" * 64, size_bytes, name), 0.5, profile=profile)


def load_times(*variants: Variant) -> list[float]:
    return [v.profile.load_ms for v in without_disturbance(variants) if v.profile is not None]


def test_a_small_file_loads_no_longer_than_a_large_one() -> None:
    assert load_times(variant("l", 200, 90.0), variant("m", 100, 60.0), variant("s", 10, 400.0)) == [
        90.0,
        60.0,
        60.0,
    ]


def test_measurements_that_agree_stay() -> None:
    listed = (variant("s", 10, 20.0), variant("l", 200, 90.0), variant("m", 100, 60.0))
    assert without_disturbance(listed) == listed


def test_runtimes_are_not_compared() -> None:
    assert load_times(variant("l", 200, 90.0), variant("s", 10, 400.0, "python")) == [90.0, 400.0]


def test_what_was_not_measured_stays_so() -> None:
    bare = msgspec.structs.replace(variant("s", 10, 20.0), profile=None)
    assert without_disturbance((bare, variant("l", 200, 90.0)))[0] == bare
