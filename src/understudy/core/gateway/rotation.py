"""Who may answer for an app right now, and in which order; and the requests that wait for it.

`App` and `Replica` are a gateway's view: facts from the route table and the agents, plus what it saw
itself. `App.refresh` turns them into `ranked` (every replica that may get a request, best first) and
`best` (the ones among which load decides). It runs when a fact changes, never per request.
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import NamedTuple, Protocol

from understudy.core.gateway.allowance import Allowance
from understudy.core.gateway.breaker import Breaker
from understudy.core.gateway.clients import ClientBuckets
from understudy.core.gateway.conduct import Conducts
from understudy.core.gateway.health import UserHealth
from understudy.core.gateway.lifecycles import COMING, CONNECTED, Seen, reported
from understudy.core.gateway.pace import Pace
from understudy.core.gateway.patience import SILENT_DEADLINE_FRACTION, Patience
from understudy.core.gateway.traffic import TrafficCounts
from understudy.core.gateway.way_back import WayBack
from understudy.settings.gateway import BreakerSettings, GatewayTuning
from understudy.wire.errors import UnderstudyError
from understudy.wire.frames import Buffer
from understudy.wire.messages import Ping, ReplicaState, Result, encode_message
from understudy.wire.records import AppVersion, Contingency
from understudy.wire.statics import Static

OLD_VERSION_PENALTY = 1000  # any variant of the current version comes before any of another one
RAMP_SHARE_MIN = 0.1  # of a full share, for a replica that was (re-)admitted just now (Envoy's slow start)
UNPROVEN_FACTOR = 0.5  # of the usual patience, with a replica that has proved nothing for long
ASK_FRACTION = 0.1  # of the time that it has owed an answer: between two questions whether it lives
OUTSTANDING_MAX = 128  # requests that one gateway keeps at one replica; the rest waits where it can move
BUSY_PAUSE_S = 0.005  # a replica that said BUSY is left alone for this long, doubling while it says so
BUSY_PAUSE_S_MAX = 0.04
BUSY_FORGOTTEN_S = 1.0  # without BUSY, until the pause is short again
DIGESTED_BYTES_MAX = 4 * 1024 * 1024  # of a body that is looked for; to read that much takes milliseconds
DIGEST_BYTES = 16


class Link(Protocol):
    """What a decision needs of a connection to a worker."""

    last_heard_s: float
    full: bool  # so much is unsent that whatever can go elsewhere should

    def write(self, data: bytes, payload: Buffer = b"") -> None: ...


class Source:
    """Who gave an answer, as the client is told."""

    __slots__ = ("degraded", "other_app", "prefix", "variant", "version")

    def __init__(self, variant: str, version: int, degraded: str = "", other_app: str = "") -> None:
        self.variant = variant
        self.version = version
        self.degraded = degraded  # why it wasn't the full-size variant; empty if it was
        self.other_app = other_app  # the app that stood in
        self.prefix = b""  # start of an HTTP answer by it; kept here by the shell


class LifeSigns:
    """When there was which sign of a replica's life. Times in seconds, monotonic."""

    __slots__ = ("answered_at", "asked_at", "outrun_at", "proven_at")

    def __init__(self, now: float) -> None:
        self.outrun_at = 0.0  # got a copy then that was called back, since another one was faster
        self.asked_at = 0.0  # for a sign of life, when it owed an answer for long
        self.answered_at = 0.0  # anything
        self.proven_at = now  # as its agent had it: an inference succeeded


class Ramp:
    """The slow start of a replica."""

    __slots__ = ("admitted_at", "credit", "share")

    def __init__(self) -> None:
        self.admitted_at: float | None = None  # when it could be used first
        self.share = 1.0  # of the requests to it and those beside it
        self.credit = 0.0  # the part of a request that it has a right to by now


class Busy:
    """How long a replica is left alone that said BUSY."""

    __slots__ = ("pause_s", "until")

    def __init__(self) -> None:
        self.until = 0.0
        self.pause_s = 0.0

    def said(self, now: float) -> None:
        if now - self.until > BUSY_FORGOTTEN_S:
            self.pause_s = BUSY_PAUSE_S
        elif now >= self.until:
            self.pause_s = min(self.pause_s * 2, BUSY_PAUSE_S_MAX)
        self.until = now + self.pause_s

    def hold(self, until: float) -> None:
        """Keep others away meanwhile: a request is to be tried alone."""
        self.until = max(self.until, until)


class Replica(Source):
    """One worker process as a gateway sees it."""

    __slots__ = (
        "address",
        "app",
        "breaker",
        "busy",
        "conduct",
        "id",
        "link",
        "next_stream",
        "node",
        "node_suspect",
        "outstanding",
        "pace",
        "pid",
        "ramp",
        "rank",
        "restarts",
        "role",
        "signs",
        "state",
        "suspect",
    )

    def __init__(
        self, state: ReplicaState, app: App, node: str, now: float, settings: BreakerSettings
    ) -> None:
        super().__init__(state.variant, state.version)
        self.id = state.id
        self.app = app
        self.node = node
        self.address = state.address
        self.pid = state.pid
        self.role = state.role
        self.state = reported(state.state)
        self.restarts = state.restarts
        self.link: Link | None = None
        self.breaker = Breaker(settings, now)
        self.conduct = app.conducts.of(state.version, state.variant)
        self.outstanding: dict[int, Flight] = {}
        self.next_stream = 1
        self.suspect = False  # silent although it owes an answer
        self.signs = LifeSigns(now)
        self.node_suspect = False
        self.busy = Busy()
        self.rank = 0
        self.pace = Pace()
        self.ramp = Ramp()

    @property
    def sound(self) -> bool:
        """Nothing speaks against it but, perhaps, what it answered."""
        ready = self.link is not None and self.state is Seen.READY
        return ready and not self.suspect and not self.node_suspect

    @property
    def coming(self) -> bool:
        """Its node is at work on it, or makes room for it, or it is being connected to."""
        connecting = self.state is Seen.READY and self.link is None
        return connecting or self.state in COMING or (self.state is Seen.BACKOFF and not self.restarts)

    def outrun(self, flight: Flight) -> None:
        """Another replica answered `flight` first, so it is called back. That may be the first sign that this
        one is frozen, which hedges would hide as long as their budget lasts: ask for a sign of life.
        """
        self.breaker.outrun(flight.stream)
        link = self.link
        if link is not None and flight.sent_at > link.last_heard_s >= self.signs.outrun_at:
            self.signs.outrun_at = flight.sent_at
            if self.signs.asked_at <= link.last_heard_s:
                link.write(encode_message(Ping()))

    def silent_s(self, now: float) -> float:
        """For how long nothing was heard of it although something was due: an answer, or a sign of life."""
        heard_s = self.link.last_heard_s  # type: ignore[union-attr]
        due_s = self.owes_since(now)
        if self.signs.outrun_at > heard_s:
            due_s = min(due_s, self.signs.outrun_at)
        return now - max(due_s, heard_s)

    def falls_silent(self, now: float, patience_s: float) -> bool:
        """Whether nothing was heard for `patience_s` although something was due. Asks first, in good time.

        One that says that it lives may still be at work: how long that may take, see `owes_too_long`.
        """
        silent_s = self.silent_s(now)
        link = self.link
        if silent_s <= patience_s / 2 or link is None:
            return False
        asked_at = max(self.signs.asked_at, self.signs.outrun_at)
        if asked_at <= link.last_heard_s:
            # The longer it has been at work, the rarer.
            if now - link.last_heard_s >= (now - self.owes_since(now)) * ASK_FRACTION:
                self.signs.asked_at = now
                link.write(encode_message(Ping()))
            return False
        return silent_s > patience_s and now - asked_at >= patience_s / 2

    def owes_too_long(self, now: float, patience_s: float) -> bool:
        """Whether it has answered nothing for so long that a request of its had better be elsewhere, too."""
        if not self.outstanding:
            return False
        oldest = next(iter(self.outstanding.values()))
        budget_s = oldest.request.deadline - oldest.request.arrived
        patience_s = max(patience_s, budget_s * SILENT_DEADLINE_FRACTION)
        return now - max(oldest.sent_at, self.signs.answered_at) > patience_s

    def unproven_s(self, now: float) -> float:
        """Since an inference of its is known to have succeeded."""
        return now - max(self.signs.proven_at, self.signs.answered_at)

    def owes_since(self, now: float) -> float:
        """When the oldest request was sent to it that it hasn't answered; `now` if there is none."""
        return next(iter(self.outstanding.values())).sent_at if self.outstanding else now

    def has_room(self, now: float) -> bool:
        link = self.link
        full = link is not None and link.full
        return len(self.outstanding) < OUTSTANDING_MAX and self.busy.until <= now and not full

    def said_busy(self, now: float) -> None:
        """Nobody's fault, but what was sent to it is sent again, so not too often."""
        self.busy.said(now)
        pool = self.app.allowance.brownout if self.degraded == "overload" else self.app.allowance
        pool.concurrency.busy += 1

    def routable(self, now: float) -> bool:
        return self.sound and self.breaker.permits(now)

    def equals(self, other: Replica) -> bool:
        """Another one that should do as well."""
        return self is not other and (self.variant, self.version) == (other.variant, other.version)


def load_of(replica: Replica) -> int:
    return len(replica.outstanding)


class PlannedPlaces:
    """What the route table says of where an app is to be answered."""

    __slots__ = ("contingencies", "hosts", "variants")

    def __init__(self) -> None:
        self.variants: frozenset[str] = frozenset()
        self.hosts: frozenset[str] = frozenset()  # nodes that it is placed on
        self.contingencies: tuple[Contingency, ...] = ()


class Queues:
    """Requests of one app that something is due for."""

    __slots__ = ("held", "held_at", "isolated", "slow", "suspects", "waiting", "watch")

    def __init__(self) -> None:
        self.waiting: deque[Request] = deque()  # no replica is ready, or all are full
        self.watch: deque[Request] = deque()  # in order of sending; too young to hedge
        self.slow: list[Request] = []  # past their hedge time; looked at until done or due
        self.suspects: deque[Request] = deque()  # were in flight on a worker that died
        self.isolated: Request | None = None  # the one suspect that is being retried
        self.held: Replica | None = None  # kept, or being emptied, for that one alone
        self.held_at = 0.0

    def hold(self, replica: Replica, now: float, until: float) -> None:
        """Keep others away from `replica`, and no longer from the one before."""
        if self.held is not replica:
            self.let_go()
        self.held, self.held_at = replica, now
        replica.busy.hold(until)

    def let_go(self) -> None:
        if self.held is not None:
            self.held.busy.until = 0.0
            self.held = None


class App:
    """One app as a gateway sees it, with everything that is counted and bounded per app."""

    def __init__(self, spec: AppVersion, settings: GatewayTuning, now: float) -> None:
        self._settings = settings
        self.clients: ClientBuckets | None = None
        self.describe(spec)
        self.name = spec.app
        self.conducts = Conducts(settings.breaker)
        self.health = UserHealth(settings.health, now)
        self.replicas: dict[str, Replica] = {}
        self.ranked: list[Replica] = []
        self.best: list[Replica] = []
        self.ramping: list[Replica] = []  # get a growing share of what `best` would
        self.version_seen = 0  # the newest version that was ready
        self.planned = PlannedPlaces()
        self.way_back = WayBack(now)
        self.inflight = 0
        self.queues = Queues()
        self.allowance = Allowance(settings.admission, now)
        self.patience = Patience(spec, settings, now)
        self.traffic = TrafficCounts()

    def refresh(self, now: float) -> None:
        """Work out `ranked`, `best` and each replica's `degraded` reason anew."""
        spec = self.spec
        for replica in self.replicas.values():
            rank = spec.rank(replica.variant)
            degraded = ""
            if replica.version != spec.version:
                rank += OLD_VERSION_PENALTY
                degraded = "previous-version"
            elif rank > 0:
                degraded = "placement" if replica.variant in self.planned.variants else "failover"
            if degraded != replica.degraded:
                replica.degraded, replica.prefix = degraded, b""
            replica.rank = rank
        ranked = [r for r in self.replicas.values() if r.routable(now)]
        if any(r.version == spec.version for r in ranked):
            self.version_seen = spec.version
        if "previous-version" not in spec.fallback and self.version_seen == spec.version:
            ranked = [r for r in ranked if r.version == spec.version]
        self._watch_health(ranked, now)
        ejected = [r for r in self.replicas.values() if r.sound and not r.breaker.permits(now)]
        ranked += self._in_panic(ranked, ejected)
        ranked.sort(key=lambda r: (r.rank, r.id))
        self.ranked = ranked
        self.best = [r for r in ranked if r.rank == ranked[0].rank]
        self.ramping = []
        for replica in ranked:
            if replica.ramp.admitted_at is None:
                replica.ramp.admitted_at = now
        if self._settings.breaker.slow_start_s and len(ranked) > 1:
            self._start_slowly(now)
        if ranked:
            self.way_back.arrived()
        if self.allowance.brownout.on:
            for replica in self.stand_ins():
                if replica.degraded != "overload":
                    replica.degraded, replica.prefix = "overload", b""

    def describe(self, spec: AppVersion) -> None:
        """Take what the route table says of the app."""
        self.spec = spec
        self.chain = spec.links_beyond_replicas  # what may answer when no replica does (see `fallback`)
        self.keeps_last_good = "last-good" in self.chain
        if spec.client_rate is None:
            self.clients = None
        elif self.clients is None or self.clients.rate != spec.client_rate:
            self.clients = ClientBuckets(spec.client_rate, self._settings.admission.clients_max)

    def stand_ins(self) -> list[Replica]:
        """Ready smaller variants of this version, beside a better one."""
        best = self.best[0].rank if self.best else OLD_VERSION_PENALTY
        return [r for r in self.ranked if best < r.rank < OLD_VERSION_PENALTY]

    def stand_ins_inflight(self) -> int:
        """Requests that overflowed to them; 0 when there is no brown-out."""
        return sum([len(r.outstanding) for r in self.stand_ins()]) if self.allowance.brownout.on else 0

    def last_resorts(self, now: float) -> list[Replica]:
        """Better than nothing when nothing healthy is left and nobody can load anything."""
        linked = [r for r in self.replicas.values() if r.link is not None and r.state in CONNECTED]
        permitted = [r for r in linked if r.breaker.permits(now)]
        # One that was ejected for failing some requests may answer others, if nothing else can.
        linked = permitted or ([] if self.chain else linked)
        trusted = [r for r in linked if not r.node_suspect]
        # When all nodes fall silent at once, the fault is hardly theirs. Without anything else to fall back
        # on, a request does better to wait for them than to fail.
        return trusted or ([] if self.chain else linked)

    def _watch_health(self, routable: list[Replica], now: float) -> None:
        current = [r for r in self.replicas.values() if r.version == self.spec.version and r.link is not None]
        untrusted = sum(r.state is Seen.FAILING or not r.breaker.closed for r in current)
        self.way_back.judged(untrusted, any(r.breaker.closed for r in routable), now)

    def _in_panic(self, healthy: list[Replica], ejected: list[Replica]) -> list[Replica]:
        """Those of the ejected to use all the same: when most of them fail, the fault is hardly theirs.

        Counted among equals, as Envoy does within a priority: a failing variant never comes before a
        healthy smaller one. With nobody healthy at all, everybody is used. A fraction of 0 means: never.
        A slow answer is better than none: whoever was ejected for being slower answers without the others.
        """
        panic_fraction = self._settings.breaker.panic_fraction
        if not healthy:
            panic = len(ejected) > 1 and panic_fraction
            return ejected if panic else [r for r in ejected if r.breaker.slow]
        used: list[Replica] = []
        for rank in {r.rank for r in ejected}:
            sick = [r for r in ejected if r.rank == rank]
            well = sum(r.rank == rank for r in healthy)
            if 0 < well < panic_fraction * (well + len(sick)):
                used += sick
        return used

    def _start_slowly(self, now: float) -> None:
        """Give new and re-admitted replicas a growing share, as far as others can do the rest.

        A new one shares with its equals. One that was re-admitted after an ejection may fail again, so it
        shares with whoever else there is, a smaller variant if need be.
        """
        for replica in self.best:
            since = max(replica.ramp.admitted_at or now, replica.breaker.closed_at or 0.0)
            replica.ramp.share = min(
                max((now - since) / self._settings.breaker.slow_start_s, RAMP_SHARE_MIN), 1.0
            )
        most = max(replica.ramp.share for replica in self.best)
        steady = [r for r in self.best if r.ramp.share == most]
        sharing = len(self.best)
        if most < 1.0 and all(r.breaker.closed_at is not None for r in steady):
            others = [r for r in self.ranked if r.rank != self.best[0].rank and r.breaker.closed]
            if others:
                steady, most = [r for r in others if r.rank == others[0].rank], 1.0
        self.ramping = [r for r in self.best if r not in steady]
        for replica in self.ramping:
            replica.ramp.share /= most * sharing
        self.best = steady

    @property
    def ready(self) -> bool:
        return bool(self.ranked)

    @property
    def fit(self) -> bool:
        """What clients are told of its readiness: a replica may answer; by `health.readiness`, also well."""
        return self.ready and not self.health.unfit

    @property
    def busy(self) -> bool:
        """Does a tick have anything to look at?"""
        return bool(self.inflight or self.queues.waiting or self.queues.suspects)

    def watch_s(self, request: Request) -> float:
        """How long after sending a request a tick need not look at it."""
        delay_s = self.patience.hedge_delay_s
        if (
            request.flights
            and request.flights[0].replica.unproven_s(request.arrived) > self._settings.hedge.unproven_s
        ):
            delay_s *= UNPROVEN_FACTOR
        return min(delay_s, (request.deadline - request.arrived) / 2) if self.chain else delay_s

    def retune(self, now: float) -> None:
        """On a timer, some times a second."""
        self.patience.retune(self.traffic.requests, self.spec.deadline_ms / 1000, now)

    def observe(self, elapsed_s: float) -> None:
        """On each tick: what was in flight for the last `elapsed_s`."""
        self.allowance.observe(self.inflight, self.stand_ins_inflight(), elapsed_s)

    def retune_admission(self, now: float) -> bool:
        """As `Allowance.retune`."""
        smaller = len(self.stand_ins())
        return self.allowance.retune(self.spec, self.traffic.answered, len(self.best), smaller, now)


class ReplicaFault(NamedTuple):
    """A replica had a request on `stream` and failed it."""

    replica: Replica
    stream: int
    at: float


class Flight:
    """One copy of a request, on its way to one replica."""

    __slots__ = ("replica", "request", "sent_at", "stream")

    def __init__(self, request: Request, replica: Replica, stream: int, sent_at: float) -> None:
        self.request = request
        self.replica = replica
        self.stream = stream
        self.sent_at = sent_at


class Request:
    """A client's request until it ends. The shell subclasses it to hear of the end."""

    flags = 0  # of the frame that carries it to a worker: which encoding `body` has

    __slots__ = (
        "app", "arrived", "attempts", "beside", "body", "client", "deadline", "done", "faults", "flights",
        "hedged", "isolated", "json_bytes", "kills", "tried",
    )  # fmt: skip

    def __init__(
        self,
        app: App,
        body: Buffer,
        arrived: float,
        deadline: float,
        json_bytes: int = -1,
        client: str = "",
    ) -> None:
        """`client` is who asks: an identity, else an address."""
        self.app = app
        self.body = body
        self.json_bytes = json_bytes
        self.client = client
        self.arrived = arrived
        self.deadline = deadline
        self.flights: list[Flight] = []
        self.tried: tuple[str, ...] = ()  # replica ids that had it and gave no answer
        self.faults: tuple[ReplicaFault, ...] = ()  # of replicas; none once it is settled whose they were
        self.kills: tuple[Replica, ...] = ()  # that died while they had nothing else
        self.beside: tuple[Replica, ...] = ()  # that died with it and others
        self.attempts = 0
        self.hedged = False
        self.isolated = False
        self.done = False

    def may_ask(self, app: App) -> bool:
        """Whether another app may answer it. The shell knows who asks, and what they may."""
        return True

    @property
    def id(self) -> str:
        """Its name in logs and events."""
        return ""

    def in_flight_s(self, now: float) -> float:
        """How long its oldest copy has been on its way."""
        return now - self.flights[0].sent_at if self.flights else 0.0

    def digest(self) -> bytes:
        """The same for the same bytes in the same encoding to the same version; empty for a larger body."""
        if len(self.body) > DIGESTED_BYTES_MAX:
            return b""
        spec = self.app.spec
        digest = hashlib.blake2b(
            f"{spec.app}/{spec.version}/{self.flags}/{self.json_bytes}/".encode(), digest_size=DIGEST_BYTES
        )
        digest.update(self.body)
        return digest.digest()

    def answered(self, source: Source, result: Result, body: Buffer) -> None:
        raise NotImplementedError

    def failed(self, error: UnderstudyError) -> None:
        raise NotImplementedError

    def answered_static(self, static: Static) -> None:
        raise NotImplementedError
