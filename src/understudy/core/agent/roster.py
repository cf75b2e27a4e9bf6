"""The replicas of one node, the memory that they hold, and what becomes of one that lost its worker."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator

from understudy.core.agent import events as ev
from understudy.core.agent.outbox import Outbox
from understudy.core.agent.replicas import LIVE, LOADED, Replica, Wanted, match, still_needed
from understudy.core.agent.restarts import Blame, Cause, CrashHistory
from understudy.core.lifecycle import ReplicaPhase
from understudy.settings.agent import AgentTuning
from understudy.wire.errors import Code
from understudy.wire.messages import Loaded
from understudy.wire.records import VariantKey

_DRAIN_GRACE_S = 0.5  # beyond the worker's own drain timeout, before it is killed


class Roster:
    """In the order in which they were called for. `life`: this one of this node, in the names of workers."""

    def __init__(
        self, life: str, memory_mb: float, tuning: AgentTuning, history: CrashHistory, out: Outbox
    ) -> None:
        self._life = life
        self._named = 0
        self.memory_mb = memory_mb  # of the node
        self._tuning = tuning
        self._history = history
        self._out = out
        self._replicas: list[Replica] = []

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._replicas)

    def __len__(self) -> int:
        return len(self._replicas)

    @property
    def ours(self) -> list[Replica]:
        """Those that stay, and that aren't there for a measurement only."""
        return [r for r in self._replicas if r.state != ReplicaPhase.DRAINING and r.asker is None]

    @property
    def used_mb(self) -> float:
        return sum(r.memory_mb for r in self._replicas if r.state in LIVE)

    @property
    def free_mb(self) -> float:
        return self.memory_mb - self.used_mb

    def proven_ago_s(self, now: float) -> dict[str, float]:
        """Since when an inference of each replica that is loaded succeeded."""
        return {
            r.id: round(now - r.life.proven_s, 1)
            for r in self._replicas
            if r.asker is None and r.state in LOADED and r.life.proven_s > -math.inf
        }

    def new_id(self) -> str:
        """Of all nodes: two of them may have started within the same millisecond."""
        self._named += 1
        return f"{self._life}-{self._named}"

    def match(self, wanted: Iterable[Wanted], now: float) -> None:
        """Let what is wanted be here, and nothing else for longer than it takes."""
        result = match(wanted, self.ours)
        for wish in result.missing:
            replica = Replica(self.new_id(), wish.key, wish, retry_at_s=now)
            self.add(replica)
            result.kept.append(replica)
        for replica in result.surplus:
            if not still_needed(replica, result.kept):
                self.release(replica, now)

    def excuse(self, workers: Collection[str], now: float) -> None:
        """Their ends were a request's fault, so nobody waits for them."""
        touched = self._history.excuse(workers)
        for replica in self._replicas:
            if replica.state == ReplicaPhase.BACKOFF and replica.key in touched:
                replica.retry_at_s = now

    def lift(self, quarantined: Collection[VariantKey], now: float) -> None:
        """The quarantine of all others was lifted, or its pause is over. What is still wanted starts anew."""
        for replica in [r for r in self._replicas if r.state == ReplicaPhase.QUARANTINED]:
            if replica.key not in quarantined:
                self.release(replica, now)

    def add(self, replica: Replica) -> None:
        self._replicas.append(replica)

    def carried_by(self, worker: str) -> Replica | None:
        return next((r for r in self._replicas if r.worker == worker), None)

    def release(self, replica: Replica, now: float, *, stopping: bool = False) -> None:
        """Not wanted any more: drain it if it answers, end it at once if it doesn't."""
        answers = replica.state in LOADED
        replica.advance("released")
        replica.detail = ""
        if replica.state == ReplicaPhase.STOPPED:
            self._replicas.remove(replica)
        elif answers:
            timeout_ms = self._tuning.drain_timeout_ms
            if not stopping:  # what runs there has its app's deadline to end
                timeout_ms = max(timeout_ms, replica.life.deadline_s * 1000)
            replica.deadline_s = now + timeout_ms / 1000 + _DRAIN_GRACE_S
            self._out.add(ev.DrainWorker(replica.worker, timeout_ms))
        else:
            self._out.kill(replica.worker)

    def loaded(self, worker: str, loaded: Loaded, now: float) -> Replica | None:
        """The replica that answers now; None if nobody waits for it any more."""
        replica = self.carried_by(worker)
        if replica is None or replica.state != ReplicaPhase.LOADING:
            return None
        replica.advance("loaded")
        replica.detail = ""
        replica.trouble = ""
        app, _, variant = replica.key
        if replica.asker is None:
            if self._history.loaded(replica.key, now):
                self._out.tell("variant.recovered", f"{variant} runs here again", app, worker)
            message = f"{variant} loaded in {loaded.load_ms:.0f} ms"
            self._out.tell("replica.loaded", message, app, worker, load_ms=loaded.load_ms)
        return replica

    def exited(self, event: ev.WorkerExited, now: float) -> None:
        """A worker's process is gone."""
        replica = self.carried_by(event.worker)
        if replica is None:
            return
        if replica.state != ReplicaPhase.DRAINING:
            kind = "worker.out_of_memory" if event.out_of_memory else "worker.crashed"
            self._out.tell(kind, f"{replica.key[2]}: {event.reason}", replica.key[0], event.worker)
        whose = Blame.PLACE if event.trouble else Blame.VARIANT
        self.crash(replica, "crashed", Cause(event.reason, event.jitter, whose), now)
        replica.trouble = event.trouble

    def crash(self, replica: Replica, how: str, cause: Cause, now: float) -> None:
        """The replica lost its worker: plan its next start, or pause its variant."""
        worker = replica.worker
        replica.advance(how)
        replica.worker, replica.pid, replica.address = "", 0, ""
        if replica.state == ReplicaPhase.STOPPED:
            self._replicas.remove(replica)
            return
        if replica.asker is not None:
            code = Code.UNAVAILABLE if cause.whose is Blame.PLACE else Code.LOAD_FAILED
            self._out.add(ev.RefuseMeasure(replica.asker, code, cause.reason, cause.traceback))
            self._replicas.remove(replica)
            return
        replica.restarts += 1
        replica.detail = cause.reason
        before = self._history.paused(now)
        delay_s = self._history.note(replica.key, now, cause.jitter, cause.whose, worker)
        if delay_s is not None:
            replica.retry_at_s = now + delay_s
        elif replica.key not in before:
            pause_s = self._history.pause_left_s(replica.key, now)
            again = f"crashes again and again here; tried again in {pause_s:.0f} s"
            message = f"{replica.key[2]} {again}: {cause.reason}"
            self._out.tell("variant.quarantined", message, replica.key[0])
