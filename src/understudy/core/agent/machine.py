"""The agent's decisions: what a node runs, restarts, probes, gives up and tells.

A machine: `step(event, now)` takes one event and returns the effects to carry out, in order. Each step
ends in the same reconciliation: match what runs with what is wanted, start what is due, refill the pool
of blank workers, publish the node's state if it changed. Not here: processes, files and sockets (`agent`).

A worker carries one replica and is never used again. Where a worker is killed, the machine goes on at
once and only remembers that its exit is still to come.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import assert_never

from understudy.core.agent import environments
from understudy.core.agent import events as ev
from understudy.core.agent.place import Place
from understudy.core.agent.pools import Pools
from understudy.core.agent.progressive import plan_activation, wanted_replicas
from understudy.core.agent.replicas import (
    LIVE,
    Replica,
    Wanted,
    limit_mb,
    load_timeout_s,
    match,
    still_needed,
)
from understudy.core.agent.restarts import Blame, CrashHistory, blame
from understudy.core.agent.unbatched import Unbatched
from understudy.core.agent.vitality import Verdict
from understudy.core.planning.footprint import replica_mb
from understudy.settings.agent import AgentTuning
from understudy.wire.errors import Code
from understudy.wire.messages import Activated, Loaded, Measured, NodeState, Target
from understudy.wire.records import AppVersion, Profile, Role

PROOFS_TOLD_S = 10.0  # how long a published state is left as it is while only the age of proofs changes
KILLED_TOLD_MAX = 16
_DRAIN_GRACE_S = 0.5  # beyond the worker's own drain timeout, before it is killed
_LATE_FACTOR = 4.0  # a probe that took this many timeouts to fail: the agent itself stood still


class AgentMachine:
    """All that one agent knows. `state` is the newest published view of the node."""

    def __init__(
        self, node: str, memory_mb: float, incarnation: int, tuning: AgentTuning, saved: ev.Saved
    ) -> None:
        self._node = node
        self._memory_mb = memory_mb
        self._incarnation = incarnation
        self._tuning = tuning
        self._target = saved.target
        self._activations = {activation.key: activation for activation in saved.activations}
        self._history = CrashHistory(tuning)
        self._place = Place()
        self._replicas: list[Replica] = []
        self._pool = Pools(tuning, self._history.delay_s)
        self._environments = environments.Environments()
        self._zygotes: frozenset[str] = frozenset()  # of environments, as asked for last
        self._unbatched = Unbatched()
        self._dying: set[str] = set()  # killed, exit not seen yet
        self._killed: deque[str] = deque(maxlen=KILLED_TOLD_MAX)  # the newest of them
        self._kills: list[str] = []  # to be carried out as soon as the node's state was published
        self._measures: deque[ev.MeasureAsked] = deque()
        self._staged: set[str] = set()
        self._next_id = 1
        self._started = False
        self._stopping = False
        self._stopped = False
        self._now = 0.0
        self._proofs_due_s = 0.0
        self._effects: list[ev.Effect] = []
        revision = saved.target.revision if saved.target else 0
        self.state = NodeState(node=node, incarnation=incarnation, serial=0, target_revision=revision)

    def step(self, event: ev.Event, now: float) -> list[ev.Effect]:
        """Take in `event` at monotonic time `now` (seconds); the effects, to be carried out in order."""
        self._now = now
        self._handle(event)
        if self._stopping:
            self._reconcile_stop()
        elif self._started:
            self._reconcile()
        self._notice(Place.LOADING, next((r.trouble for r in self._replicas if r.trouble), ""))
        self._publish()
        effects, self._effects = self._effects, []
        if not self._kills:
            return effects
        # Whoever hears that a connection broke is to know already that it was this node's doing.
        told = [effect for effect in effects if isinstance(effect, ev.Publish)]
        kills = [ev.KillWorker(worker) for worker in self._kills]
        self._kills.clear()
        return [*told, *kills, *(effect for effect in effects if not isinstance(effect, ev.Publish))]

    @property
    def due_s(self) -> float:
        """When the next `Tick` is needed; infinity if only an event can change anything."""
        replicas_s = (replica.due_s(self._now) for replica in self._replicas)
        return min(self._pool.due_s(self._now), self._history.due_s(self._now), *replicas_s, math.inf)

    def _handle(self, event: ev.Event) -> None:
        match event:
            case ev.WorkerExited():
                self._exited(event)
            case ev.LoadDone(worker, loaded):
                self._loaded(worker, loaded)
            case ev.LoadFailed():
                self._load_failed(event)
            case ev.ProbePassed(worker, proven_ago_s):
                self._probe_passed(worker, proven_ago_s)
            case ev.ProbeUnanswered():
                self._probe_unanswered(event)
            case ev.ProbeFailed():
                self._probe_failed(event)
            case ev.LinkLost(worker):
                self._link_lost(worker)
            case ev.BatchingEndedAt(worker, reason):
                self._effects += self._unbatched.seen(self._carried_by(worker), reason, self._replicas)
            case ev.ActivateAsked():
                self._activate(event)
            case ev.TargetReceived(target):
                self._take_target(target)
            case ev.MeasureAsked():
                self._ask_measure(event)
            case ev.WorkerBlank(worker, pid, address):
                self._pool.add(worker, pid, address, self._now)
                self._notice(Place.FORKING)
            case ev.EnvironmentChanged(key, problem):
                self._environments.changed(key, problem)
                for r in self._replicas:
                    if r.state == "backoff" and r.wanted and r.wanted.variant.environment_key == key:
                        r.retry_at_s = self._now
            case ev.PlaceChanged(trouble, warning):
                self._notice(Place.DISK, trouble)
                self._place.warning = warning
            case ev.WorkerFound():
                self._adopt(event)
            case ev.ArtifactStaged(digest):
                self._staged.add(digest)
            case ev.ArtifactDropped(digest):
                self._staged.discard(digest)
            case ev.Started():
                self._started = True
                self._stage()
            case ev.StopAsked():
                self._stopping = True
            case ev.Tick():
                pass
            case _:
                assert_never(event)

    # Orders

    def _take_target(self, target: Target) -> None:
        if self._target is not None and target.revision < self._target.revision:
            return
        self._target = target
        known = {(a.app, a.version) for a in target.apps}
        for r in target.replicas:
            if (r.app, r.version) not in known:
                self._tell("target.misunderstood", f"no version {r.version} of {r.app} in the target", r.app)
        for app, version, variant in self._history.acknowledge(frozenset(target.quarantined)):
            self._tell("quarantine.lifted", f"{variant} of version {version} may run again", app)
        wanted = {(r.app, r.version, r.variant) for r in target.replicas}
        for key, activation in list(self._activations.items()):
            final = (activation.app.app, activation.app.version, activation.contingency.variant)
            if key in target.released or final in wanted:
                del self._activations[key]
                self._tell("activation.released", f"{key} is over", activation.app.app)
        self._effects += self._unbatched.take(target, self._replicas)
        self._save()
        self._stage()

    def _activate(self, event: ev.ActivateAsked) -> None:
        contingency = event.activate.contingency
        refusal = self._try_activate(event)
        answer = Activated(contingency.key, accepted=not refusal, reason=refusal)
        self._effects.append(ev.AnswerActivate(event.token, answer))
        if refusal:
            self._tell("activation.refused", f"{contingency.key}: {refusal}", contingency.app)

    def _try_activate(self, event: ev.ActivateAsked) -> str:
        """Begin the contingency. A reason why not; empty also when nothing is left to do."""
        contingency = event.activate.contingency
        if self._stopping or self._target is None:
            return "stopping" if self._stopping else "this node has no target yet"
        ready = [r for r in self._replicas if r.state == "ready" and r.asker is None]
        # A former version answers too, but a newer one may be what the asker can't use.
        if any(r.key[0] == contingency.app and r.key[1] <= contingency.version for r in ready):
            return ""
        # Two failures may be reported at once for one app (a node and its site): one is being mended.
        wanted = (contingency.app, contingency.version)
        if any((a.app.app, a.app.version) == wanted for a in self._activations.values()):
            return ""
        activation = plan_activation(
            contingency,
            self._target.apps,
            here=self._staged | self._environments.ready,
            quarantined=self._quarantined(),
            free_mb=self._memory_mb - self._used_mb(),
            skip_ms=self._tuning.progressive_skip_ms,
        )
        if isinstance(activation, str):
            self._stage()
            return activation
        self._activations[activation.key] = activation
        # Loading comes first: saving and telling can wait for it.
        self._reconcile()
        self._save()
        via = f" by way of {activation.first}" if activation.first != activation.contingency.variant else ""
        message = f"{activation.key}: starting {activation.contingency.variant}{via}"
        self._tell("activation.accepted", message, activation.app.app)
        return ""

    def _ask_measure(self, event: ev.MeasureAsked) -> None:
        variant = event.measure.app.variant(event.measure.variant)
        if variant is None:
            message = f"{event.measure.app.app} has no variant {event.measure.variant}"
            self._effects.append(ev.RefuseMeasure(event.token, Code.NOT_FOUND, message))
        elif self._stopping or len(self._measures) >= self._tuning.waiting_max:
            self._effects.append(
                ev.RefuseMeasure(event.token, Code.BUSY, "too many measurements are waiting")
            )
        elif problem := self._environments.problem(variant):
            self._effects.append(ev.RefuseMeasure(event.token, Code.UNAVAILABLE, problem))
        else:
            self._measures.append(event)

    # Workers

    def _adopt(self, event: ev.WorkerFound) -> None:
        stats = event.stats
        if stats.state == "blank":
            self._pool.add(event.worker, stats.pid, event.address, self._now, event.environment)
        elif stats.state in ("ready", "draining"):
            key = (stats.app, stats.version, stats.variant)
            replica = Replica(event.worker, key, None, "ready", event.worker, stats.pid, event.address)
            app = self._app(stats.app, stats.version)
            variant = app.variant(stats.variant) if app else None
            replica.memory_mb = replica_mb(variant) if variant else stats.pss_mb
            self._begin_probing(replica, 0.0, app)
            replica.life.proven_s = -math.inf
            self._replicas.append(replica)
            if stats.state == "draining":
                self._release(replica)
            self._tell("worker.adopted", f"pid {stats.pid} serves on", stats.app, event.worker)
        else:
            self._kill(event.worker)

    def _exited(self, event: ev.WorkerExited) -> None:
        worker = event.worker
        self._dying.discard(worker)
        if self._pool.exited(worker, self._now, event.jitter):
            self._tell("worker.crashed", f"a blank worker ended: {event.reason}", replica=worker)
            if self._pool.failures >= self._tuning.crash_loop_count:
                self._notice(Place.FORKING, f"workers can't be started: {event.reason}")
            return
        replica = self._carried_by(worker)
        if replica is None:
            return
        if replica.state != "draining":
            kind = "worker.out_of_memory" if event.out_of_memory else "worker.crashed"
            self._tell(kind, f"{replica.key[2]}: {event.reason}", replica.key[0], worker)
        whose = Blame.PLACE if event.trouble else Blame.VARIANT
        self._crash(replica, "crashed", event.reason, event.jitter, whose)
        replica.trouble = event.trouble

    def _loaded(self, worker: str, loaded: Loaded) -> None:
        replica = self._carried_by(worker)
        if replica is None or replica.state != "loading":
            return
        replica.advance("loaded")
        replica.detail = ""
        replica.trouble = ""
        if replica.asker is None and self._history.loaded(replica.key, self._now):
            self._tell("variant.recovered", f"{replica.key[2]} runs here again", replica.key[0], worker)
        self._begin_probing(replica, loaded.latency_ms / 1000, replica.wanted.app if replica.wanted else None)
        if replica.asker is None:
            message = f"{replica.key[2]} loaded in {loaded.load_ms:.0f} ms"
            self._tell("replica.loaded", message, replica.key[0], worker, load_ms=loaded.load_ms)
            return
        profile = Profile(
            loaded.base_mb,
            loaded.memory_mb,
            loaded.load_ms,
            loaded.latency_ms,
            self._node,
            loaded.memory_per_byte,
            loaded.output_per_byte,
        )
        self._effects.append(
            ev.AnswerMeasure(
                replica.asker,
                Measured(profile, loaded.inputs, loaded.outputs, loaded.notes, verdict=loaded.verdict),
            )
        )
        self._release(replica)

    def _load_failed(self, event: ev.LoadFailed) -> None:
        replica = self._carried_by(event.worker)
        if replica is None or replica.state != "loading":
            return
        self._kill(event.worker)
        kind = "worker.out_of_memory" if event.code is Code.OUT_OF_MEMORY else "load.failed"
        message = f"{replica.key[2]}: {event.message}"
        trace = {"traceback": event.traceback} if event.traceback else {}
        self._tell(kind, message, replica.key[0], event.worker, code=event.code.value, **trace)
        whose = blame(event.code)
        self._crash(replica, "load_failed", event.message, event.jitter, whose, event.traceback)
        what = f"{replica.key[2]} of {replica.key[0]} can't be loaded: {event.message}"
        replica.trouble = what if whose is Blame.PLACE else ""
        if event.code is Code.TIMEOUT and replica.wanted is not None:
            # At most half of the time is spent on it.
            pause_s = load_timeout_s(replica.wanted.variant, self._tuning)
            replica.retry_at_s = max(replica.retry_at_s, self._now + pause_s)

    def _begin_probing(self, replica: Replica, latency_s: float, app: AppVersion | None) -> None:
        profile = variant.profile if app and (variant := app.variant(replica.key[2])) else None
        replica.life.begin(
            self._now,
            max(latency_s, profile.latency_ms / 1000 if profile else 0.0),
            app.deadline_ms / 1000 if app else 0.0,
            self._tuning.probe_interval_ms / 1000,
        )

    def _probe_passed(self, worker: str, proven_ago_s: float) -> None:
        self._pool.passed(worker)
        replica = self._carried_by(worker)
        if replica is None:
            return
        replica.life.passed(self._now, proven_ago_s)
        self._recover(replica, "passes its probe again")

    def _probe_unanswered(self, event: ev.ProbeUnanswered) -> None:
        replica = self._carried_by(event.worker)
        if replica is None or replica.state not in ("ready", "failing"):
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
                self._count_probe_failure(replica, why, event.jitter)
            case Verdict.HUNG:
                self._fail(replica, why)
                self._give_up(replica, why, event.jitter)
            case _:
                assert_never(verdict)

    def _recover(self, replica: Replica, how: str) -> None:
        if replica.state == "failing":
            replica.advance("probe_passed")
            replica.detail = ""
            self._tell("replica.recovered", f"{replica.key[2]} {how}", replica.key[0], replica.worker)

    def _probe_failed(self, event: ev.ProbeFailed) -> None:
        late = event.waited_s > _LATE_FACTOR * self._tuning.probe_timeout_ms / 1000
        if late:  # this process was stopped or starved: no verdict on anybody else
            self._pool.check_again(event.worker, self._now)
        elif self._pool.remove(event.worker):
            self._kill(event.worker)
        replica = self._carried_by(event.worker)
        if replica is None:
            return
        replica.life.asked = False
        if late:
            replica.life.ask_at_s = self._now
        elif replica.state in ("ready", "failing"):
            self._count_probe_failure(replica, event.reason, event.jitter)

    def _count_probe_failure(self, replica: Replica, reason: str, jitter: float) -> None:
        replica.life.failures += 1
        self._fail(replica, reason)
        if replica.life.failures >= self._tuning.probe_failures_restart:
            self._give_up(replica, reason, jitter)

    def _give_up(self, replica: Replica, reason: str, jitter: float) -> None:
        """End a worker that may be in the middle of requests: not their fault, nor its variant's."""
        self._dying.add(replica.worker)
        self._killed.append(replica.worker)
        self._kills.append(replica.worker)
        self._tell("worker.given_up", f"{replica.key[2]}: {reason}", replica.key[0], replica.worker)
        self._crash(replica, "gave_up", reason, jitter, Blame.NOBODY)

    def _link_lost(self, worker: str) -> None:
        if self._pool.remove(worker):
            self._kill(worker)
        replica = self._carried_by(worker)
        if replica is not None:
            replica.life.ask_at_s = self._now
            self._fail(replica, "connection lost")

    def _fail(self, replica: Replica, reason: str) -> None:
        if replica.state == "ready":
            replica.advance("probe_failed")
            replica.detail = reason
            self._tell("replica.failed", f"{replica.key[2]}: {reason}", replica.key[0], replica.worker)

    def _crash(
        self, replica: Replica, how: str, reason: str, jitter: float, whose: Blame, traceback: str = ""
    ) -> None:
        """The replica lost its worker: plan its next start, or pause its variant."""
        replica.advance(how)
        replica.worker, replica.pid, replica.address = "", 0, ""
        if replica.state == "stopped":
            self._replicas.remove(replica)
            return
        if replica.asker is not None:
            code = Code.UNAVAILABLE if whose is Blame.PLACE else Code.LOAD_FAILED
            self._effects.append(ev.RefuseMeasure(replica.asker, code, reason, traceback))
            self._replicas.remove(replica)
            return
        replica.restarts += 1
        replica.detail = reason
        before = self._history.paused(self._now)
        delay_s = self._history.note(replica.key, self._now, jitter, whose)
        if delay_s is not None:
            replica.retry_at_s = self._now + delay_s
        elif replica.key not in before:
            pause_s = self._history.pause_left_s(replica.key, self._now)
            message = (
                f"{replica.key[2]} crashes again and again here; tried again in {pause_s:.0f} s: {reason}"
            )
            self._tell("variant.quarantined", message, replica.key[0])

    def _notice(self, source: str, trouble: str = "") -> None:
        """Something about this node itself: what is wrong, or that it no longer is."""
        if self._place.take(source, trouble):
            kind = "node.troubled" if trouble else "node.recovered"
            self._tell(kind, trouble or "nothing is wrong with this node any more")

    # Reconciliation

    def _reconcile(self) -> None:
        if self._target is not None:  # without one, nobody knows what should not run
            self._match(self._target)
        self._begin_measure()
        for replica in self._replicas:
            if replica.state == "backoff" and replica.retry_at_s <= self._now:
                self._start(replica)
        if self._target is not None and any(r.refused_for_memory for r in self._replicas):
            self._match(self._target)  # nothing holds the memory that they wait for
        for replica in self._replicas:
            if replica.state == "starting":
                self._load(replica)
        self._check_deadlines()
        self._fork()

    def _fork(self) -> None:
        waiting = Counter(
            r.wanted.variant.environment_key for r in self._replicas if r.state == "starting" and r.wanted
        )
        # What isn't urgent leaves the processor to a load that began just now.
        spare = not any(r.loads_alone(self._now) for r in self._replicas)
        urgent = environments.urgent(self._target) & self._environments.ready
        self._effects += self._pool.refill(waiting, urgent, self._now, self._new_id, spare=spare)
        needed = urgent | environments.in_use(self._replicas)
        for worker in self._pool.end_idle(needed):
            self._kill(worker)
        if needed != self._zygotes:
            self._zygotes = needed
            self._effects.append(ev.KeepZygotes(needed))

    def _match(self, target: Target) -> None:
        quarantined = self._quarantined()
        for replica in [r for r in self._replicas if r.state == "quarantined"]:
            if replica.key not in quarantined:
                self._release(replica)  # lifted, or its pause is over; if it is still wanted, it starts anew
        ours = [r for r in self._replicas if r.state != "draining" and r.asker is None]
        result = match(wanted_replicas(target, self._activations.values(), ours), ours)
        for wish in result.missing:
            replica = Replica(self._new_id(), wish.key, wish, retry_at_s=self._now)
            self._replicas.append(replica)
            result.kept.append(replica)
        for replica in result.surplus:
            if not still_needed(replica, result.kept):
                self._release(replica)

    def _begin_measure(self) -> None:
        # One at a time: two would measure each other.
        while self._measures and not any(r.asker is not None for r in self._replicas):
            asked = self._measures.popleft()
            app = asked.measure.app
            variant = app.variant(asked.measure.variant)
            if variant is not None:
                wish = Wanted(app, variant, Role.PRIMARY)
                self._replicas.append(Replica(self._new_id(), wish.key, wish, asker=asked.token))

    def _start(self, replica: Replica) -> None:
        if replica.wanted is None:
            self._release(replica)
            return
        if replica.asker is None and replica.key in self._quarantined():
            replica.advance("crash_looped")
            return
        if problem := self._environments.problem(replica.wanted.variant):
            replica.detail = problem
            replica.retry_at_s = self._now + environments.RETRY_S
            return
        needs_mb = replica_mb(replica.wanted.variant)
        free_mb = self._memory_mb - self._used_mb()
        replica.refused_for_memory = needs_mb > free_mb and replica.asker is None
        if replica.refused_for_memory:
            replica.detail = f"memory: needs {needs_mb:.0f} MB, {free_mb:.0f} MB free"
            return
        replica.memory_mb = needs_mb
        replica.advance("retried")

    def _load(self, replica: Replica) -> None:
        wish = replica.wanted
        blank = self._pool.take(wish.variant.environment_key) if wish is not None else None
        if wish is None or blank is None:
            return
        replica.id = replica.worker = blank.worker
        replica.load_at_s = self._now
        replica.pid, replica.address = blank.pid, blank.address
        replica.detail = f"for {load_timeout_s(wish.variant, self._tuning):g} s at most"
        replica.advance("worker_started")
        limit = limit_mb(wish.variant, self._tuning, self._memory_mb)
        measure = replica.asker is not None
        variant = self._unbatched.applied(wish.key, wish.variant)
        self._effects.append(ev.LoadWorker(blank.worker, wish.app, variant, limit, measure, wish.brief))

    def _check_deadlines(self) -> None:
        loaded = [r for r in self._replicas if r.state in ("ready", "failing")]
        for r in loaded:
            if not r.life.asked and r.life.ask_at_s <= self._now:
                due = r.life.asks_for_proof(self._now, len(loaded), self._tuning)
                self._effects.append(ev.ProbeWorker(r.worker, inference=due or r.state == "failing"))
        for r in self._replicas:
            if r.deadline_s <= self._now:
                r.deadline_s = math.inf
                self._kill(r.worker)
        self._effects += self._pool.checks(self._now)

    def _reconcile_stop(self) -> None:
        for replica in [r for r in self._replicas if r.state != "draining"]:
            self._release(replica)
        for worker in self._pool.clear():
            self._kill(worker)
        for asked in self._measures:
            self._effects.append(ev.RefuseMeasure(asked.token, Code.DRAINING, "the agent is stopping"))
        self._measures.clear()
        self._check_deadlines()
        if self._pool.empty and not (self._replicas or self._dying or self._stopped):
            self._stopped = True
            self._effects.append(ev.Stopped())

    def _release(self, replica: Replica) -> None:
        """Not wanted any more: drain it if it answers, end it at once if it doesn't."""
        answers = replica.state in ("ready", "failing")
        replica.advance("released")
        replica.detail = ""
        if replica.state == "stopped":
            self._replicas.remove(replica)
        elif answers:
            timeout_ms = self._tuning.drain_timeout_ms
            if not self._stopping:  # what runs there has its app's deadline to end
                timeout_ms = max(timeout_ms, replica.life.deadline_s * 1000)
            replica.deadline_s = self._now + timeout_ms / 1000 + _DRAIN_GRACE_S
            self._effects.append(ev.DrainWorker(replica.worker, timeout_ms))
        else:
            self._kill(replica.worker)

    # Facts

    def _carried_by(self, worker: str) -> Replica | None:
        return next((r for r in self._replicas if r.worker == worker), None)

    def _app(self, name: str, version: int) -> AppVersion | None:
        apps = [*(self._target.apps if self._target else ()), *(a.app for a in self._activations.values())]
        return next((a for a in apps if (a.app, a.version) == (name, version)), None)

    def _quarantined(self) -> frozenset[tuple[str, int, str]]:
        listed = self._target.quarantined if self._target else ()
        return frozenset(self._history.paused(self._now) + listed)

    def _used_mb(self) -> float:
        return sum(r.memory_mb for r in self._replicas if r.state in LIVE)

    def _new_id(self) -> str:
        """Of all nodes: two of them may have started within the same millisecond."""
        number, self._next_id = self._next_id, self._next_id + 1
        return f"{self._node}-{self._incarnation:x}-{number}"

    # Effects

    def _kill(self, worker: str) -> None:
        self._dying.add(worker)
        self._effects.append(ev.KillWorker(worker))

    def _save(self) -> None:
        self._effects.append(ev.Save(ev.Saved(self._target, tuple(self._activations.values()))))

    def _stage(self) -> None:
        if self._target is None:
            return
        running = {r.wanted.variant.artifact.digest for r in self._replicas if r.wanted is not None}
        keep = running | {ref.digest for ref in self._target.stage}
        self._effects.append(ev.StageArtifacts(self._target.stage, frozenset(keep)))
        self._effects.append(ev.HaveEnvironments(environments.wanted(self._target.apps)))

    def _tell(self, kind: str, message: str, app: str = "", replica: str = "", **data: float | str) -> None:
        self._effects.append(ev.Tell(kind, message, app, replica, dict(data)))

    def _publish(self) -> None:
        state = NodeState(
            node=self._node,
            incarnation=self._incarnation,
            serial=self.state.serial,
            target_revision=self._target.revision if self._target else 0,
            replicas=tuple(r.view() for r in self._replicas if r.asker is None),
            staged=tuple(sorted(self._staged)),
            quarantined=self._history.looping,
            trouble=self._place.troubles,
            warning=self._place.warning,
            memory_used_mb=self._used_mb(),
            blank_workers=len(self._pool),
            environments=dict(self._environments.found),
            killed=tuple(self._killed),
            proven_ago_s=self.state.proven_ago_s,
            unbatched=self._unbatched.view,
        )
        if state != self.state or self._now >= self._proofs_due_s:
            self._proofs_due_s = self._now + PROOFS_TOLD_S
            state.proven_ago_s = {
                r.id: round(self._now - r.life.proven_s, 1)
                for r in self._replicas
                if r.asker is None and r.state in ("ready", "failing") and r.life.proven_s > -math.inf
            }
            state.serial += 1
            self.state = state
            self._effects.append(ev.Publish(state))
