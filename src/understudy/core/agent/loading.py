"""From a replica that is wanted to one that answers: environment, memory, a blank worker, its model."""

from __future__ import annotations

from collections.abc import Collection

from understudy.core.agent import events as ev
from understudy.core.agent.environments import RETRY_S, Environments
from understudy.core.agent.outbox import Outbox
from understudy.core.agent.pools import Pools, pool_of
from understudy.core.agent.replicas import Replica, limit_mb, load_timeout_s
from understudy.core.agent.restarts import Blame, Cause, blame
from understudy.core.agent.roster import Roster
from understudy.core.agent.unbatched import Unbatched
from understudy.core.lifecycle import ReplicaPhase
from understudy.core.planning.footprint import replica_mb
from understudy.settings.agent import AgentTuning
from understudy.wire.errors import Code
from understudy.wire.records import VariantKey


class Loading:
    def __init__(
        self, roster: Roster, pool: Pools, environments: Environments, tuning: AgentTuning, out: Outbox
    ) -> None:
        self._roster = roster
        self._pool = pool
        self._environments = environments
        self._tuning = tuning
        self._out = out

    def start(self, replica: Replica, quarantined: Collection[VariantKey], now: float) -> None:
        """Reserve its memory, if there is any; a blank worker is then the next thing that it needs."""
        if replica.wanted is None:
            self._roster.release(replica, now)
            return
        if replica.asker is None and replica.key in quarantined:
            replica.advance("crash_looped")
            return
        if problem := self._environments.problem(replica.wanted.variant):
            replica.detail = problem
            replica.retry_at_s = now + RETRY_S
            return
        needs_mb = replica_mb(replica.wanted.variant)
        free_mb = self._roster.free_mb
        replica.refused_for_memory = needs_mb > free_mb and replica.asker is None
        if replica.refused_for_memory:
            replica.detail = f"memory: needs {needs_mb:.0f} MB, {free_mb:.0f} MB free"
            return
        replica.memory_mb = needs_mb
        replica.advance("retried")

    def look_again(self, environment: str, now: float) -> None:
        """Something is known anew of the environment of this key."""
        for r in self._roster:
            if (
                r.state == ReplicaPhase.BACKOFF
                and r.wanted
                and r.wanted.variant.environment_key == environment
            ):
                r.retry_at_s = now

    def load(self, replica: Replica, unbatched: Unbatched, now: float) -> None:
        """Give it a blank worker, if there is one."""
        wish = replica.wanted
        blank = self._pool.take(pool_of(wish.variant)) if wish is not None else None
        if wish is None or blank is None:
            return
        replica.id = replica.worker = blank.worker
        replica.load_at_s = now
        replica.pid, replica.address = blank.pid, blank.address
        replica.detail = f"for {load_timeout_s(wish.variant, self._tuning):g} s at most"
        replica.advance("worker_started")
        limit = limit_mb(wish.variant, self._tuning, self._roster.memory_mb)
        measure = replica.asker is not None
        variant = unbatched.applied(wish.key, wish.variant)
        self._out.add(ev.LoadWorker(blank.worker, wish.app, variant, limit, measure, wish.brief))

    def failed(self, event: ev.LoadFailed, now: float) -> None:
        replica = self._roster.carried_by(event.worker)
        if replica is None or replica.state != ReplicaPhase.LOADING:
            return
        self._out.kill(event.worker)
        kind = "worker.out_of_memory" if event.code is Code.OUT_OF_MEMORY else "load.failed"
        message = f"{replica.key[2]}: {event.message}"
        trace = {"traceback": event.traceback} if event.traceback else {}
        self._out.tell(kind, message, replica.key[0], event.worker, code=event.code.value, **trace)
        whose = blame(event.code)
        cause = Cause(event.message, event.jitter, whose, event.traceback)
        self._roster.crash(replica, "load_failed", cause, now)
        what = f"{replica.key[2]} of {replica.key[0]} can't be loaded: {event.message}"
        replica.trouble = what if whose is Blame.PLACE else ""
        if event.code is Code.TIMEOUT and replica.wanted is not None:
            # At most half of the time is spent on it.
            pause_s = load_timeout_s(replica.wanted.variant, self._tuning)
            replica.retry_at_s = max(replica.retry_at_s, now + pause_s)
