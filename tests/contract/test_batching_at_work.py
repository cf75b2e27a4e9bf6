"""A worker that was told that requests may share batches, and whose model says otherwise."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
from worker_process import WorkerProcess, loading, request, tensor

from understudy.wire.errors import Code
from understudy.wire.messages import BatchingEnded, Failure, Rehearse, Rehearsed, Result, Stats, WorkerStats
from understudy.wire.records import Batching, TensorSpec
from understudy.worker.batching.rechecks import WAIT_S

CENTRED = """
class Model:
    def load(self, path): pass
    def predict(self, inputs):
        x = inputs["x"]
        return {"y": x - x.mean(0) if %s else x}
"""
SPECS = {
    "inputs": (TensorSpec("x", "FP64", (-1, 2)),),
    "outputs": (TensorSpec("y", "FP64", (-1, 2)),),
    "batching": Batching(wait_us=5000),
}
DEADLINE_S = 20 * WAIT_S


def model(folder: Path, condition: str) -> str:
    (folder / "model.py").write_text(CENTRED % condition)
    return str(folder)


def bodies(*firsts: float) -> list[bytes]:
    return [request(tensor("x", "FP64", [1, 2], [first, 0.5])) for first in firsts]


def largest_batch(worker: WorkerProcess, *firsts: float) -> int:
    return max(m.rows for m, _ in worker.client.infer_all(bodies(*firsts)) if isinstance(m, Result))


def ended(worker: WorkerProcess) -> str:
    return str(worker.client.call(Stats(), WorkerStats).batching_ended)


def test_a_difference_that_rehearsal_missed_ends_batching(blank: WorkerProcess, tmp_path: Path) -> None:
    blank.load(loading("python", Path(model(tmp_path, "(x > 1e6).any()")), **SPECS))
    assert largest_batch(blank, 1, 2, 3, 4) > 1
    assert not ended(blank)
    deadline_s = time.monotonic() + DEADLINE_S
    batches = 0
    while not ended(blank):
        assert time.monotonic() < deadline_s, "nobody noticed"
        assert largest_batch(blank, 2e6, 2, 3e6, 4) >= 1
        batches += 1
    assert "output 'y' differs" in ended(blank)
    assert batches < 200
    assert largest_batch(blank, 1, 2, 3, 4) == 1


def test_a_model_that_works_row_by_row_stays_batched(blank: WorkerProcess, tmp_path: Path) -> None:
    blank.load(loading("python", Path(model(tmp_path, "False")), **SPECS))
    for _ in range(60):
        largest_batch(blank, 1, 2, 3, 4)
    assert not ended(blank)
    assert largest_batch(blank, 1, 2, 3, 4) > 1


def test_an_agent_ends_batching(blank: WorkerProcess, tmp_path: Path) -> None:
    blank.load(loading("python", Path(model(tmp_path, "False")), **SPECS))
    blank.client.send((BatchingEnded("seen on another node"), b""))
    blank.client.call(Stats(), WorkerStats)
    assert largest_batch(blank, 1, 2, 3, 4) == 1


def rehearse(worker: WorkerProcess, folder: Path, condition: str, **wanted: Any) -> Rehearsed | Failure:
    asked = SPECS | {"batching": Batching(**wanted), "verdict": None}
    worker.load(loading("python", Path(model(folder, condition)), **asked))
    (stream,) = worker.client.send((Rehearse(), b""))
    message: Rehearsed | Failure = worker.client.reply(stream)[0]
    return message


def test_a_model_that_mixes_rows_runs_one_request_at_a_time(blank: WorkerProcess, tmp_path: Path) -> None:
    found = rehearse(blank, tmp_path, "True")
    assert isinstance(found, Rehearsed)
    assert (found.verdict.together, found.verdict.by) == (False, "rehearsal")
    assert "output 'y' differs by" in found.verdict.reason


def test_who_insists_on_batching_declares_a_tolerance(blank: WorkerProcess, tmp_path: Path) -> None:
    refused = rehearse(blank, tmp_path, "True", mode="always")
    assert isinstance(refused, Failure)
    assert refused.code is Code.LOAD_FAILED
    assert "output 'y' differs by" in refused.message
    assert "declare a [batching] tolerance" in refused.message


def test_a_declared_tolerance_permits_it(blank: WorkerProcess, tmp_path: Path) -> None:
    found = rehearse(blank, tmp_path, "True", mode="always", tolerance=1e9)
    assert isinstance(found, Rehearsed)
    assert (found.verdict.together, found.verdict.by) == (True, "declared")


def test_without_a_verdict_nothing_shares_a_batch(blank: WorkerProcess, tmp_path: Path) -> None:
    blank.load(loading("python", Path(model(tmp_path, "False")), **SPECS, verdict=None))
    assert largest_batch(blank, 1, 2, 3, 4) == 1
    two = request(tensor("x", "FP64", [2, 2], [1, 2, 3, 4]))
    answer = msgspec.json.decode(blank.client.infer(two)[1])
    assert answer["outputs"][0]["data"] == [1, 2, 3, 4], "rows that came together stay together"


SHAPED = """
class Model:
    def load(self, path): pass
    def predict(self, inputs):
        return {"y": %s}
"""


def test_an_output_of_another_rank_is_refused_by_a_single_row(blank: WorkerProcess, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(SHAPED % 'inputs["x"]')
    wanted = SPECS | {"outputs": (TensorSpec("y", "FP64", (-1,)),), "verdict": None}
    (stream,) = blank.client.send((loading("python", tmp_path, **wanted), b""))
    failure = blank.client.reply(stream)[0]
    assert isinstance(failure, Failure)
    assert "output 'y' has shape [1,2], which doesn't fit [-1]" in failure.message


def test_an_output_whose_shape_is_wrong_for_several_rows_only_is_refused(
    blank: WorkerProcess, tmp_path: Path
) -> None:
    (tmp_path / "model.py").write_text(
        SHAPED % 'inputs["x"].sum(0, keepdims=True).repeat(len(inputs["x"]), 1)'
    )
    blank.load(loading("python", tmp_path, **SPECS | {"verdict": None}))
    (stream,) = blank.client.send((Rehearse(), b""))
    refused = blank.client.reply(stream)[0]
    assert isinstance(refused, Failure)
    assert refused.code is Code.LOAD_FAILED
    assert refused.message == "for 3 rows, output 'y' has shape [1,6], which doesn't fit [-1,2]"
