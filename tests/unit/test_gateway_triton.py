"""What Triton's clients are told about an app."""

from __future__ import annotations

import msgspec
import pytest
from gateway_world import World

from understudy.gateway import triton
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.messages import Result
from understudy.wire.records import AppVersion, ArtifactRef, Batching, TensorSpec, Variant

VARIANT = Variant("full", "onnx", ArtifactRef("0" * 64, 1, "full.onnx"), 0.9)
TEXT = TensorSpec("t", "BYTES", (-1,))
FIXED = TensorSpec("x", "FP32", (3,))


def test_the_configuration_of_a_model_with_a_batch_dimension() -> None:
    spec = AppVersion("a", 3, (VARIANT,), inputs=(TEXT,), outputs=(TEXT,), batching=Batching(8, 500))
    assert triton.configuration(spec) == {
        "name": "a",
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": {"specific": {"versions": [3]}},
        "max_batch_size": 8,
        "input": [{"name": "t", "data_type": "TYPE_STRING", "dims": ()}],
        "output": [{"name": "t", "data_type": "TYPE_STRING", "dims": ()}],
        "dynamic_batching": {"max_queue_delay_microseconds": 500},
    }


def test_the_configuration_of_a_model_without_one() -> None:
    config = triton.configuration(AppVersion("a", 1, (VARIANT,), inputs=(FIXED,), outputs=(TEXT,)))
    assert config["max_batch_size"] == 0
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": (3,)}]
    assert "dynamic_batching" not in config


def test_statistics_add_up() -> None:
    app = World().gateway.apps["digits"]
    app.traffic.stats.failed, app.traffic.total.shed = 2, 3
    for at in (10.0, 11.0):
        app.traffic.answered.add(Result(infer_us=300, queue_us=50), 0.5, at)
    (stats,) = triton.statistics([app], 12.0, 1000.0)["model_stats"]
    assert (stats["name"], stats["inference_count"], stats["last_inference"]) == ("digits", 2, 999_000)
    assert stats["inference_stats"]["success"] == {"count": 2, "ns": 1_000_000_000}
    assert stats["inference_stats"]["queue"] == {"count": 2, "ns": 100_000}
    assert stats["inference_stats"]["compute_infer"] == {"count": 2, "ns": 600_000}
    assert stats["inference_stats"]["fail"]["count"] == 5
    msgspec.json.encode(stats)


def test_loading_asks_for_nothing_that_is_not_there() -> None:
    app = World().gateway.apps["digits"]
    for body in (b"", b"{}", b'{"parameters": {}}'):
        triton.load(app, with_parameters=triton.has_parameters(body))
    with pytest.raises(UnderstudyError, match="deploy a new version"):
        triton.load(app, with_parameters=triton.has_parameters(b'{"parameters": {"config": "{}"}}'))
    app.ranked.clear()
    with pytest.raises(UnderstudyError) as caught:
        triton.load(app, with_parameters=triton.has_parameters(b""))
    assert caught.value.code is Code.UNAVAILABLE
    assert triton.index([app], ready_only=triton.wants_ready_only(b'{"ready": true}')) == []
    assert triton.index([app], ready_only=triton.wants_ready_only(b""))[0]["state"] == "UNAVAILABLE"
