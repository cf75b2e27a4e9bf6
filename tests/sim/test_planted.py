"""The bugs that `make sim-planted` plants still fit the code, and what is found is shrunk to what matters."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from planted import BUGS, MENDED, MISSED, SOURCES, Bug, plant

from understudy.core.controller.nodes import Nodes
from understudy.sim.seeds import run, scenario_of
from understudy.sim.shrinking import smallest


@pytest.mark.parametrize("bug", [*BUGS, *MENDED, *MISSED], ids=lambda bug: bug.name)
def test_a_bug_can_be_planted(bug: Bug, tmp_path: Path):
    copy = tmp_path / bug.file
    copy.parent.mkdir(parents=True)
    shutil.copy(SOURCES / bug.file, copy)
    plant(bug, tmp_path)
    compile(copy.read_text(), bug.file, "exec")


def test_a_failing_run_is_shrunk_to_what_matters(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Nodes, "_window_s", lambda *_: 1e9)  # a node that died is never trusted again
    whole = scenario_of(6)
    assert "not all nodes are back" in run(whole).failure
    small = smallest(whole, runs_max=40)
    assert "not all nodes are back" in run(small).failure
    (fault,) = small.parts
    assert whole.faults[fault].kind in ("node killed", "power lost", "node frozen", "process killed")
    assert small.command == f"understudy simulate --seed 6 --only {fault}"
    again = scenario_of(6).only(small.parts)
    assert run(again).failure == run(small).failure, "the command replays it"


def test_a_run_that_does_not_fail_is_left_as_it_is():
    whole = scenario_of(1)
    assert smallest(whole, runs_max=2) is whole
