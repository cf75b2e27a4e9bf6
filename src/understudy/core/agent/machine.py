"""The agent's decisions: what a node runs, restarts, probes, gives up and tells.

A machine: `step(event, now)` takes one event and returns the effects to carry out, in order. Each step
ends in the same reconciliation: match what runs with what is wanted, start what is due, refill the pool
of blank workers, publish the node's state if it changed. Not here: processes, files and sockets (`agent`).

A worker carries one replica and is never used again. Where a worker is killed, the machine goes on at
once and only remembers that its exit is still to come.
"""

from __future__ import annotations

import math
from collections import Counter
from enum import StrEnum
from typing import assert_never

import msgspec

from understudy.core.agent import environments
from understudy.core.agent import events as ev
from understudy.core.agent.loading import Loading
from understudy.core.agent.measures import Measures
from understudy.core.agent.orders import Orders
from understudy.core.agent.outbox import Outbox
from understudy.core.agent.place import Place
from understudy.core.agent.pools import OWN, Pools, environment_of, pool_of
from understudy.core.agent.replicas import Replica
from understudy.core.agent.restarts import CrashHistory
from understudy.core.agent.roster import Roster
from understudy.core.agent.unbatched import Unbatched
from understudy.core.agent.watch import Watch
from understudy.core.lifecycle import ReplicaPhase, WorkerPhase
from understudy.core.planning.footprint import replica_mb
from understudy.settings.agent import AgentTuning
from understudy.wire.messages import Activated, Loaded, NodeState, Target
from understudy.wire.records import VariantKey

PROOFS_TOLD_S = 10.0  # how long a published state is left as it is while only the age of proofs changes


class AgentPhase(StrEnum):
    ADOPTING = "adopting"  # of workers that outlived a former agent; nothing is started or stopped
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"


class AgentMachine:
    """All that one agent knows. `state` is the newest published view of the node."""

    def __init__(
        self, node: str, memory_mb: float, incarnation: int, tuning: AgentTuning, saved: ev.Saved
    ) -> None:
        self._tuning = tuning
        self._out = Outbox()
        self._history = CrashHistory(tuning)
        self._place = Place()
        self._roster = Roster(f"{node}-{incarnation:x}", memory_mb, tuning, self._history, self._out)
        self._pool = Pools(tuning, self._history.delay_s)
        self._environments = environments.Environments()
        self._zygotes: frozenset[str] = frozenset()  # of pools, as asked for last
        self._watch = Watch(self._roster, self._pool, tuning, self._out)
        self._loading = Loading(self._roster, self._pool, self._environments, tuning, self._out)
        self._measures = Measures(node, tuning.waiting_max, self._roster, self._environments, self._out)
        self._orders = Orders(saved, tuning, self._roster, self._history, self._environments, self._out)
        self._unbatched = Unbatched()
        self._phase = AgentPhase.ADOPTING
        self._now = 0.0
        self._proofs_due_s = 0.0
        self.state = NodeState(
            node=node, incarnation=incarnation, serial=0, target_revision=self._orders.revision
        )

    def step(self, event: ev.Event, now: float) -> list[ev.Effect]:
        """Take in `event` at monotonic time `now` (seconds); the effects, to be carried out in order."""
        self._now = now
        self._handle(event)
        match self._phase:
            case AgentPhase.ADOPTING:
                pass
            case AgentPhase.RUNNING:
                self._reconcile()
            case AgentPhase.STOPPING | AgentPhase.STOPPED:
                self._reconcile_stop()
            case _:
                assert_never(self._phase)
        self._notice(Place.LOADING, next((r.trouble for r in self._roster if r.trouble), ""))
        self._publish()
        return self._out.take()

    @property
    def due_s(self) -> float:
        """When the next `Tick` is needed; infinity if only an event can change anything."""
        replicas_s = (replica.due_s(self._now) for replica in self._roster)
        return min(self._pool.due_s(self._now), self._history.due_s(self._now), *replicas_s, math.inf)

    def _handle(self, event: ev.Event) -> None:
        match event:
            case ev.WorkerExited():
                self._exited(event)
            case ev.LoadDone(worker, loaded):
                self._loaded(worker, loaded)
            case ev.LoadFailed():
                self._loading.failed(event, self._now)
            case ev.ProbePassed(worker, proven_ago_s):
                self._watch.passed(worker, proven_ago_s, self._now)
            case ev.ProbeUnanswered():
                self._watch.unanswered(event, self._now)
            case ev.ProbeFailed():
                self._watch.failed(event, self._now)
            case ev.LinkLost(worker):
                self._watch.link_lost(worker, self._now)
            case ev.BatchingEndedAt(worker, reason):
                carrier = self._roster.carried_by(worker)
                self._out.add(*self._unbatched.seen(carrier, reason, self._roster))
            case ev.ActivateAsked():
                self._activate(event)
            case ev.CrashesExcused(workers):
                self._roster.excuse(workers, self._now)
            case ev.TargetReceived(target):
                self._take_target(target)
            case ev.MeasureAsked():
                self._measures.ask(event, stopping=self._stopping)
            case ev.WorkerBlank(worker, pid, address):
                self._pool.add(worker, pid, address, self._now)
                self._notice(Place.FORKING)
            case ev.EnvironmentChanged(key, problem):
                self._environments.changed(key, problem)
                self._loading.look_again(key, self._now)
            case ev.PlaceChanged(trouble, warning):
                self._notice(Place.DISK, trouble)
                self._place.warning = warning
            case ev.WorkerFound():
                self._adopt(event)
            case ev.ArtifactStaged(digest):
                self._orders.staged.add(digest)
            case ev.ArtifactDropped(digest):
                self._orders.staged.discard(digest)
            case ev.Started():
                self._phase = AgentPhase.RUNNING if self._phase is AgentPhase.ADOPTING else self._phase
                self._orders.stage()
            case ev.StopAsked():
                self._phase = AgentPhase.STOPPING if self._phase is not AgentPhase.STOPPED else self._phase
            case ev.Tick():
                pass
            case _:
                assert_never(event)

    @property
    def _stopping(self) -> bool:
        return self._phase in (AgentPhase.STOPPING, AgentPhase.STOPPED)

    def _take_target(self, target: Target) -> None:
        if self._orders.take(target):
            self._out.add(*self._unbatched.take(target, self._roster))
            self._orders.save()
            self._orders.stage()

    def _activate(self, event: ev.ActivateAsked) -> None:
        contingency = event.activate.contingency
        activation = "stopping" if self._stopping else self._orders.activate(contingency, self._now)
        refusal = activation if isinstance(activation, str) else ""
        if not isinstance(activation, str):
            # Loading comes first: saving and telling can wait for it.
            self._reconcile()
            self._orders.save()
            last = activation.contingency.variant
            via = f" by way of {activation.first}" if activation.first != last else ""
            message = f"{activation.key}: starting {last}{via}"
            self._out.tell("activation.accepted", message, activation.app.app)
        answer = Activated(contingency.key, accepted=not refusal, reason=refusal)
        self._out.add(ev.AnswerActivate(event.token, answer))
        if refusal:
            self._out.tell("activation.refused", f"{contingency.key}: {refusal}", contingency.app)

    def _adopt(self, event: ev.WorkerFound) -> None:
        stats = event.stats
        if stats.state == WorkerPhase.BLANK:
            self._pool.add(event.worker, stats.pid, event.address, self._now, event.environment)
        elif stats.state in (WorkerPhase.READY, WorkerPhase.DRAINING):
            key = (stats.app, stats.version, stats.variant)
            replica = Replica(
                event.worker, key, None, ReplicaPhase.READY, event.worker, stats.pid, event.address
            )
            app = self._orders.app(stats.app, stats.version)
            variant = app.variant(stats.variant) if app else None
            replica.memory_mb = replica_mb(variant) if variant else stats.pss_mb
            self._watch.begin(replica, 0.0, app, self._now)
            replica.life.proven_s = -math.inf
            self._roster.add(replica)
            if stats.state == WorkerPhase.DRAINING:
                self._roster.release(replica, self._now, stopping=self._stopping)
            self._out.tell("worker.adopted", f"pid {stats.pid} serves on", stats.app, event.worker)
        else:
            self._out.kill(event.worker)

    def _exited(self, event: ev.WorkerExited) -> None:
        worker = event.worker
        self._out.dying.discard(worker)
        if self._pool.exited(worker, self._now, event.jitter):
            self._out.tell("worker.crashed", f"a blank worker ended: {event.reason}", replica=worker)
            if self._pool.failures >= self._tuning.crash_loop_count:
                self._notice(Place.FORKING, f"workers can't be started: {event.reason}")
        else:
            self._roster.exited(event, self._now)

    def _loaded(self, worker: str, loaded: Loaded) -> None:
        replica = self._roster.loaded(worker, loaded, self._now)
        if replica is None:
            return
        app = replica.wanted.app if replica.wanted else None
        self._watch.begin(replica, loaded.latency_ms / 1000, app, self._now)
        self._measures.answer(replica, loaded, self._now)

    def _notice(self, source: str, trouble: str = "") -> None:
        """Something about this node itself: what is wrong, or that it no longer is."""
        if self._place.take(source, trouble):
            kind = "node.troubled" if trouble else "node.recovered"
            self._out.tell(kind, trouble or "nothing is wrong with this node any more")

    def _reconcile(self) -> None:
        quarantined = self._orders.quarantined(self._now)
        self._match(quarantined)
        self._measures.begin(self._roster.new_id)
        for replica in tuple(self._roster):
            if replica.state == ReplicaPhase.BACKOFF and replica.retry_at_s <= self._now:
                self._loading.start(replica, quarantined, self._now)
        if any(r.refused_for_memory for r in self._roster):
            self._match(quarantined)  # nothing holds the memory that they wait for
        for replica in self._roster:
            if replica.state == ReplicaPhase.STARTING:
                self._loading.load(replica, self._unbatched, self._now)
        self._watch.ask(self._now)
        self._fork()

    def _fork(self) -> None:
        waiting = Counter(
            pool_of(r.wanted.variant) for r in self._roster if r.state == ReplicaPhase.STARTING and r.wanted
        )
        # What isn't urgent leaves the processor to a load that began just now.
        spare = not any(r.loads_alone(self._now) for r in self._roster)
        urgent = frozenset(
            pool
            for pool in environments.urgent(self._orders.target)
            if environment_of(pool)[0] in self._environments.ready | {OWN}
        )
        self._out.add(*self._pool.refill(waiting, urgent, self._now, self._roster.new_id, spare=spare))
        needed = urgent | environments.in_use(self._roster)
        for worker in self._pool.end_idle(needed):
            self._out.kill(worker)
        if needed != self._zygotes:
            self._zygotes = needed
            self._out.add(ev.KeepZygotes(needed))

    def _match(self, quarantined: frozenset[VariantKey]) -> None:
        target = self._orders.target
        if target is not None:
            self._roster.lift(quarantined, self._now)
            self._roster.match(self._orders.wanted(target), self._now)

    def _reconcile_stop(self) -> None:
        for replica in [r for r in self._roster if r.state != ReplicaPhase.DRAINING]:
            self._roster.release(replica, self._now, stopping=True)
        for worker in self._pool.clear():
            self._out.kill(worker)
        self._measures.refuse_all("the agent is stopping")
        self._watch.ask(self._now)
        gone = self._pool.empty and not (self._roster or self._out.dying)
        if gone and self._phase is not AgentPhase.STOPPED:
            self._phase = AgentPhase.STOPPED
            self._out.add(ev.Stopped())

    def _publish(self) -> None:
        state = msgspec.structs.replace(
            self.state,
            target_revision=self._orders.revision,
            replicas=tuple(r.view() for r in self._roster if r.asker is None),
            staged=tuple(sorted(self._orders.staged)),
            quarantined=self._history.looping,
            trouble=self._place.troubles,
            warning=self._place.warning,
            memory_used_mb=self._roster.used_mb,
            blank_workers=len(self._pool),
            environments=dict(self._environments.found),
            killed=self._out.killed,
            unbatched=self._unbatched.view,
        )
        if state != self.state or self._now >= self._proofs_due_s:
            self._proofs_due_s = self._now + PROOFS_TOLD_S
            state.proven_ago_s = self._roster.proven_ago_s(self._now)
            state.serial += 1
            self.state = state
            self._out.add(ev.Publish(state))
