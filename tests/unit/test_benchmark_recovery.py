"""The recovery benchmark: its models are valid, its figures follow from what clients saw."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
from benchmarks import results
from benchmarks.recovery import architectures as a
from benchmarks.recovery import models, page, report
from benchmarks.recovery.graph import CLASSES, INPUT, SHAPE, Graph
from benchmarks.recovery.load import Sample, is_right
from benchmarks.recovery.models import Model, Scheme
from benchmarks.recovery.scenario import Kill, Lost, Played

from understudy.wire.records import Criticality

# One network of each family, as small as it gets.
TINY: dict[str, a.Architecture] = {
    "convnext": partial(a.convnext, depths=(1, 1, 1, 1), width=8),
    "densenet": partial(a.densenet, blocks=(1, 1, 1, 1), initial=8, growth=4),
    "efficientnet": partial(a.efficientnet, width=0.2, depth=0.2),
    "mnasnet": partial(a.mnasnet, width=0.2),
    "mobilenet": partial(a.mobilenet_v3, blocks=a.MOBILENET_V3_SMALL[:4], last=32),
    "regnet": a.regnet_y(4, 16, 16.0, 2.0, 8),
    "regnet_x": a.regnet_x(4, 16, 16.0, 2.0, 8),
    "resnet": partial(a.resnet, blocks=(1, 1, 1, 1), deep=False),
    "resnext": partial(a.resnet, blocks=(1, 1, 1, 1), deep=True, groups=4, group_width=4),
    "shufflenet": partial(a.shufflenet, widths=(16, 32, 64), last=32),
}

SMALL = Model("nets", "net-s", 70.0, 5.0, 5.0, "s", best=3, logit=2.0)
LARGE = Model("nets", "net-l", 80.0, 50.0, 50.0, "l", best=4, logit=1.0)


@pytest.mark.parametrize("family", TINY)
def test_every_family_runs(family: str) -> None:
    graph = Graph(seed=1)
    network = graph.model(TINY[family](graph))
    onnx.checker.check_model(network)
    session = onnxruntime.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {INPUT: np.ones((2, *SHAPE), np.float32)})
    assert logits.shape == (2, CLASSES)
    assert np.isfinite(logits).all()
    assert logits.std() > 0


def test_the_models_are_those_of_the_table() -> None:
    rows = models.published()
    assert set(rows) == set(a.ARCHITECTURES)
    assert len(rows) >= 27
    assert {row.family for row in rows.values()} == set(TINY)
    assert min(row.file_mb for row in rows.values()) < 6
    assert max(row.file_mb for row in rows.values()) > 330


def test_schemes_differ_in_variants_and_criticality() -> None:
    (ours,) = models.apps_of([SMALL, LARGE], Scheme.UNDERSTUDY)
    (cold,) = models.apps_of([SMALL, LARGE], Scheme.COLD)
    (warm,) = models.apps_of([SMALL, LARGE], Scheme.WARM)
    assert ours.models == (LARGE, SMALL)
    assert cold.models == warm.models == (LARGE,)
    assert (cold.criticality, warm.criticality) == (Criticality.STANDARD, Criticality.CRITICAL)


@pytest.mark.parametrize(
    ("best", "logit", "right"), [(3, 2.0, True), (3, 2.001, True), (3, 2.1, False), (5, 2.0, False)]
)
def test_an_answer_is_right_when_it_is_the_models_own(best: int, logit: float, right: bool) -> None:
    logits = np.zeros(CLASSES, np.float32)
    logits[best] = logit
    head = b"{}"
    headers = {"inference-header-content-length": str(len(head))}
    assert is_right(headers, head + logits.tobytes(), SMALL) is right
    assert not is_right(headers, head + logits.tobytes()[4:], SMALL)


def event(kind: str, at_unix_ms: float, **more: object) -> dict[str, object]:
    return {"kind": kind, "at_unix_ms": at_unix_ms, "app": "nets", "node": "n2", "data": {}, **more}


def played(*samples: Sample) -> Played:
    events = [
        event("replica.lost", 5_004, node="n1"),
        event("activation.accepted", 5_006),
        event("replica.loaded", 5_030, data={"load_ms": 20.0}),
    ]
    kill = Kill("n1", 100.0, 5_000.0, [Lost("nets", "net-l", "cold")], 110.0, events)
    return Played([kill], {"nets": list(samples)}, 100.0, 0.0, 0)


def recovered(*samples: Sample) -> report.Recovery:
    apps = models.apps_of([SMALL, LARGE], Scheme.UNDERSTUDY)
    (found,) = report.recoveries(Scheme.UNDERSTUDY, apps, played(*samples))
    return found


def test_an_outage_ends_with_the_first_right_answer_to_a_later_request() -> None:
    found = recovered(
        Sample("nets", 99.9, 100.02, 200, "net-l", "", True),  # sent before
        Sample("nets", 100.0, 100.01, 503),
        Sample("nets", 100.001, 100.025, 200, "net-s", "", False),  # not what the model gives
        Sample("nets", 100.002, 100.035, 200, "net-s", "smaller-variant", True),
        Sample("nets", 101.0, 101.1, 200, "net-l", "", True),
    )
    assert found.mttr_ms == pytest.approx(35.0)
    assert (found.variant_before, found.variant_first, found.variant_after) == ("net-l", "net-s", "net-l")
    assert (found.accuracy_before, found.accuracy_first, found.accuracy_after) == (80.0, 70.0, 80.0)
    assert found.parts_ms == {"detect": 4.0, "ask": 2.0, "prepare": 4.0, "load": 20.0, "answer": 5.0}


def test_an_answer_after_the_node_came_back_is_no_recovery() -> None:
    found = recovered(Sample("nets", 100.0, 110.5, 200, "net-l", "", True))
    assert found.mttr_ms is None
    (row, *_) = report.rows_of([found])
    assert (row.figure, row.mean) == ("Understudy, all: recovered", 0.0)


def test_each_app_counts_once_in_the_mean() -> None:
    times = {"one": (10.0, 30.0), "two": (40.0,), "three": (None,)}
    found = [
        report.Recovery(scheme, "n1", app, "cold", "v", mttr_ms=time_ms)
        for scheme in (Scheme.UNDERSTUDY, Scheme.COLD)
        for app, values in times.items()
        for time_ms in values
    ]
    assert report.mean_ms(found, Scheme.UNDERSTUDY) == 30.0
    assert [(aim.value, aim.met) for aim in report.aims_of(found)] == [(30.0, True), (1.0, False)]


def test_the_recorded_run_has_what_the_documents_quote() -> None:
    result = json.loads((results.RESULTS / "recovery.json").read_text())
    assert {aim["name"] for aim in result["aims"]} == {aim.name for aim in report.aims_of([])}
    assert set(result["environment"]["schemes"]) == set(Scheme)
    for model in result["environment"]["models"]:
        assert model["file_mb"] == pytest.approx(model["published_mb"], rel=0.01)
    assert "| Understudy | " in "\n".join(page.summary(result))
    assert f"| {result['environment']['recoveries'][0]['node']} | " in "\n".join(page.page(result))
