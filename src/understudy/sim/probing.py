"""A probe on its way: its worker is looked at until it answers, as `agent.probing` has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from understudy.core.agent import events as ev
from understudy.core.agent.vitality import Signs
from understudy.sim.workers import SimWorker

if TYPE_CHECKING:
    from understudy.sim.nodes import Agent

LATE_FACTOR = 4.0


class Probing:
    def __init__(self, agent: Agent, worker: SimWorker, inference: bool) -> None:
        self._agent, self._worker, self._inference = agent, worker, inference
        self._began_s = agent.process.now
        self._timeout_s = agent.tuning.probe_timeout_ms / 1000
        self._ended = worker.batches
        self._stood_still_s = 0.0
        self._answered = False
        worker.process.post(lambda: worker.probe(self._probed, inference=inference))
        self._look_later()

    def _probed(self) -> None:
        self._agent.process.post(self._hear)

    def _hear(self) -> None:
        self._answered = True
        name = self._worker.name
        if self._inference and self._worker.fails == 1.0:
            self._agent.step(ev.ProbeFailed(name, "model failed"))
        else:
            self._agent.step(ev.ProbePassed(name, self._agent.process.now - self._worker.proven_s))

    def _look_later(self) -> None:
        due_s = self._agent.process.now + self._timeout_s
        self._agent.process.after(self._timeout_s, lambda: self._look(due_s))

    def _look(self, due_s: float) -> None:
        worker, now = self._worker, self._agent.process.now
        if self._answered or worker.name not in self._agent.node.workers:
            return
        if now - due_s > LATE_FACTOR * self._timeout_s:
            self._stood_still_s += now - due_s
        else:
            began_s, rows, budget_s = worker.running or (now, 0, 0.0)
            signs = Signs(
                now - self._began_s,
                heard=not worker.process.paused,
                stopped=worker.process.paused,
                moved=worker.batches != self._ended,
                running_s=now - began_s - self._stood_still_s if worker.running else None,
                rows=rows,
                budget_s=budget_s,
            )
            self._ended = worker.batches
            self._agent.step(ev.ProbeUnanswered(worker.name, signs))
        self._look_later()
