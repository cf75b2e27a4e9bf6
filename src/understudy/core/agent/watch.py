"""Watching over loaded replicas: what the answers to their probes mean, and who is asked when."""

from __future__ import annotations

import math
from typing import assert_never

from understudy.core.agent import events as ev
from understudy.core.agent.outbox import Outbox
from understudy.core.agent.pools import Pools
from understudy.core.agent.replicas import LOADED, Replica
from understudy.core.agent.restarts import Blame, Cause
from understudy.core.agent.roster import Roster
from understudy.core.agent.vitality import Verdict
from understudy.core.lifecycle import ReplicaPhase
from understudy.settings.agent import AgentTuning
from understudy.wire.records import AppVersion

_LATE_FACTOR = 4.0  # a probe that took this many timeouts to fail: the agent itself stood still


class Watch:
    """Of replicas, and of the blank workers that are to become some."""

    def __init__(self, roster: Roster, pool: Pools, tuning: AgentTuning, out: Outbox) -> None:
        self._roster = roster
        self._pool = pool
        self._tuning = tuning
        self._out = out

    def begin(self, replica: Replica, latency_s: float, app: AppVersion | None, now: float) -> None:
        profile = variant.profile if app and (variant := app.variant(replica.key[2])) else None
        replica.life.begin(
            now,
            max(latency_s, profile.latency_ms / 1000 if profile else 0.0),
            app.deadline_ms / 1000 if app else 0.0,
            self._tuning.probe_interval_ms / 1000,
        )

    def ask(self, now: float) -> None:
        """Probe those whose time has come; end those whose drain has taken too long."""
        loaded = [r for r in self._roster if r.state in LOADED]
        for r in loaded:
            if not r.life.asked and r.life.ask_at_s <= now:
                due = r.life.asks_for_proof(now, len(loaded), self._tuning)
                self._out.add(ev.ProbeWorker(r.worker, inference=due or r.state == ReplicaPhase.FAILING))
        for r in self._roster:
            if r.deadline_s <= now:
                r.deadline_s = math.inf
                self._out.kill(r.worker)
        self._out.add(*self._pool.checks(now))

    def passed(self, worker: str, proven_ago_s: float, now: float) -> None:
        self._pool.passed(worker)
        replica = self._roster.carried_by(worker)
        if replica is None:
            return
        replica.life.passed(now, proven_ago_s)
        self._recover(replica, "passes its probe again")

    def unanswered(self, event: ev.ProbeUnanswered, now: float) -> None:
        replica = self._roster.carried_by(event.worker)
        if replica is None or replica.state not in LOADED:
            return
        if replica.wanted is not None:  # an adopted one is told late which app it serves
            replica.life.deadline_s = replica.wanted.app.deadline_ms / 1000
        verdict, why = replica.life.judge(event.signs, self._tuning)
        match verdict:
            case Verdict.BUSY:
                replica.life.failures = 0
                if replica.life.still:
                    replica.life.still = False
                    self._recover(replica, "works again")
            case Verdict.OVERDUE:
                replica.life.still = True
                self._fail(replica, why)
            case Verdict.STILL:
                replica.life.still = True
                self._count_failure(replica, Cause(why, event.jitter, Blame.NOBODY), now)
            case Verdict.HUNG:
                self._fail(replica, why)
                self._give_up(replica, Cause(why, event.jitter, Blame.NOBODY), now)
            case _:
                assert_never(verdict)

    def failed(self, event: ev.ProbeFailed, now: float) -> None:
        late = event.waited_s > _LATE_FACTOR * self._tuning.probe_timeout_ms / 1000
        if late:  # this process was stopped or starved: no verdict on anybody else
            self._pool.check_again(event.worker, now)
        elif self._pool.remove(event.worker):
            self._out.kill(event.worker)
        replica = self._roster.carried_by(event.worker)
        if replica is None:
            return
        replica.life.asked = False
        if late:
            replica.life.ask_at_s = now
        elif replica.state in LOADED:
            self._count_failure(replica, Cause(event.reason, event.jitter, Blame.NOBODY), now)

    def link_lost(self, worker: str, now: float) -> None:
        if self._pool.remove(worker):
            self._out.kill(worker)
        replica = self._roster.carried_by(worker)
        if replica is not None:
            replica.life.ask_at_s = now
            self._fail(replica, "connection lost")

    def _recover(self, replica: Replica, how: str) -> None:
        if replica.state == ReplicaPhase.FAILING:
            replica.advance("probe_passed")
            replica.detail = ""
            self._out.tell("replica.recovered", f"{replica.key[2]} {how}", replica.key[0], replica.worker)

    def _fail(self, replica: Replica, reason: str) -> None:
        if replica.state == ReplicaPhase.READY:
            replica.advance("probe_failed")
            replica.detail = reason
            self._out.tell("replica.failed", f"{replica.key[2]}: {reason}", replica.key[0], replica.worker)

    def _count_failure(self, replica: Replica, cause: Cause, now: float) -> None:
        replica.life.failures += 1
        self._fail(replica, cause.reason)
        if replica.life.failures >= self._tuning.probe_failures_restart:
            self._give_up(replica, cause, now)

    def _give_up(self, replica: Replica, cause: Cause, now: float) -> None:
        """End a worker that may be in the middle of requests: not their fault, nor its variant's."""
        self._out.kill_told(replica.worker)
        message = f"{replica.key[2]}: {cause.reason}"
        self._out.tell("worker.given_up", message, replica.key[0], replica.worker)
        self._roster.crash(replica, "gave_up", cause, now)
