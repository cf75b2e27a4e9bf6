"""Who may answer for an app right now, and in which order; and the requests that wait for it.

`App` and `Replica` are a gateway's view: facts from the route table and the agents, plus what it saw
itself. `App.refresh` turns them into `ranked` (every replica that may get a request, best first) and
`best` (the ones among which load decides). It runs when a fact changes, never per request.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

from understudy.config import BreakerSettings, GatewayTuning
from understudy.core.gateway.activation import Activation
from understudy.core.gateway.admission import Concurrency, target_latency_s
from understudy.core.gateway.breaker import Breaker
from understudy.core.gateway.brownout import Brownout
from understudy.core.gateway.budget import Budget
from understudy.core.gateway.clients import ClientBuckets
from understudy.core.gateway.latency import LatencyDigest
from understudy.wire.errors import UnderstudyError
from understudy.wire.frames import Buffer
from understudy.wire.messages import AppStats, ReplicaState, Result
from understudy.wire.records import AppVersion

OLD_VERSION_PENALTY = 1000  # any variant of the current version comes before any of another one
HEDGE_SAMPLES_MIN = 20  # answers seen before the live quantile is believed
OUTSTANDING_MAX = 128  # requests that one gateway keeps at one replica; the rest waits where it can move
BUSY_PAUSE_S = 0.005  # a replica that said BUSY is left alone for this long, doubling while it says so
BUSY_PAUSE_S_MAX = 0.04
BUSY_FORGOTTEN_S = 1.0  # without BUSY, until the pause is short again


class Link(Protocol):
    """What a decision needs of a connection to a worker."""

    last_heard_s: float

    def write(self, data: bytes, payload: Buffer = b"") -> None: ...


class Replica:
    """One worker process as a gateway sees it."""

    __slots__ = (
        "address",
        "app",
        "breaker",
        "busy_pause_s",
        "busy_until",
        "degraded",
        "id",
        "link",
        "next_stream",
        "node",
        "node_suspect",
        "outstanding",
        "pid",
        "prefix",
        "rank",
        "role",
        "state",
        "suspect",
        "variant",
        "version",
    )

    def __init__(
        self, state: ReplicaState, app: App, node: str, now: float, settings: BreakerSettings
    ) -> None:
        self.id = state.id
        self.app = app
        self.node = node
        self.version = state.version
        self.variant = state.variant
        self.address = state.address
        self.pid = state.pid
        self.role = state.role
        self.state = state.state
        self.link: Link | None = None
        self.breaker = Breaker(settings, now)
        self.outstanding: dict[int, Flight] = {}
        self.next_stream = 1
        self.suspect = False  # silent although it owes an answer
        self.node_suspect = False
        self.busy_until = 0.0
        self.busy_pause_s = 0.0
        self.rank = 0
        self.degraded = ""
        self.prefix = b""  # start of an HTTP answer by this replica; kept here by the shell

    @property
    def sound(self) -> bool:
        """Nothing speaks against it but, perhaps, what it answered."""
        ready = self.link is not None and self.state == "ready"
        return ready and not self.suspect and not self.node_suspect

    def has_room(self, now: float) -> bool:
        return len(self.outstanding) < OUTSTANDING_MAX and self.busy_until <= now

    def said_busy(self, now: float) -> None:
        """Nobody's fault, but what was sent to it is sent again, so not too often."""
        if now - self.busy_until > BUSY_FORGOTTEN_S:
            self.busy_pause_s = BUSY_PAUSE_S
        elif now >= self.busy_until:
            self.busy_pause_s = min(self.busy_pause_s * 2, BUSY_PAUSE_S_MAX)
        self.busy_until = now + self.busy_pause_s
        pool = self.app.brownout if self.degraded == "overload" else self.app
        pool.concurrency.busy += 1

    def routable(self, now: float) -> bool:
        return self.sound and self.breaker.permits(now)

    def usable_in_panic(self) -> bool:
        """Better than nothing when nothing healthy is left."""
        return self.link is not None and self.state in ("ready", "failing") and not self.node_suspect


def load_of(replica: Replica) -> int:
    return len(replica.outstanding)


class App:
    """One app as a gateway sees it, with everything that is counted and bounded per app."""

    def __init__(self, spec: AppVersion, settings: GatewayTuning, now: float) -> None:
        self._admission = settings.admission
        self.clients: ClientBuckets | None = None
        self.describe(spec)
        self.name = spec.app
        self.replicas: dict[str, Replica] = {}
        self.ranked: list[Replica] = []
        self.best: list[Replica] = []
        self.planned_variants: frozenset[str] = frozenset()
        self.was_ready = False
        self.known_since = now
        self.hopeless = False  # nobody can be asked to load it
        self.activation: Activation | None = None
        self.refused: dict[str, float] = {}  # node -> when it refused to activate
        # requests
        self.inflight = 0
        self.limit: float = settings.admission.inflight_max  # ask `pressure.Gate` from here on
        self.share: float = settings.admission.inflight_max  # of what the whole gateway may have in flight
        self.admitted_fraction = 1.0
        self.admitted_credit = 0.0  # what rounding has left over of it
        self.spacing_s = 0.0  # a request in flight makes the next one wait for so long
        self.concurrency = Concurrency(settings.admission, now)
        self.brownout = Brownout(settings.admission, now)
        self.waiting: deque[Request] = deque()  # no replica is ready, or all are full
        self.watch: deque[Request] = deque()  # in order of sending; too young to hedge
        self.slow: list[Request] = []  # past their hedge time; looked at until done or due
        self.suspects: deque[Request] = deque()  # were in flight on a worker that died
        self.isolated: Request | None = None  # the one suspect that is being retried
        # measurements
        self.digest = LatencyDigest(now)
        self.answers = 0  # given by replicas since ever
        self.infer_us_total = 0  # sum over the answers of how long their batches ran
        self._infer_seen = (0, 0)  # answers, infer_us_total
        self._infer_s = 0.0  # of a batch, lately
        # Until enough answers were seen, a variant's measured profile says how long they may take.
        known_s = max((v.profile.latency_ms for v in spec.variants if v.profile), default=0.0) / 1000
        self.hedge_delay_s = max(settings.hedge.delay_ms_min * 4 / 1000, 2 * known_s)
        self.silence_s = settings.suspicion.silence_ms_min * 4 / 1000
        self.silence_s = max(self.silence_s, settings.suspicion.silence_factor * known_s)
        self.retry_budget = Budget(settings.retry.budget_fraction, settings.retry.budget_min, now)
        self.hedge_budget = Budget(settings.hedge.budget_fraction, settings.retry.budget_min, now)
        self.stats = AppStats()
        self.stats_total = AppStats()
        self._deposited = 0
        self._panic_fraction = settings.breaker.panic_fraction

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
                degraded = "placement" if replica.variant in self.planned_variants else "failover"
            if degraded != replica.degraded:
                replica.degraded, replica.prefix = degraded, b""
            replica.rank = rank
        ranked = [r for r in self.replicas.values() if r.routable(now)]
        ejected = [r for r in self.replicas.values() if r.sound and not r.breaker.permits(now)]
        if len(ejected) > 1 and len(ranked) < self._panic_fraction * (len(ranked) + len(ejected)):
            ranked += ejected  # when most of them fail, the fault is hardly theirs
        ranked.sort(key=lambda r: (r.rank, r.id))
        self.ranked = ranked
        self.best = [r for r in ranked if r.rank == ranked[0].rank]
        if ranked:
            self.was_ready = True
            self.hopeless = False
            self.activation = None
            self.refused.clear()
        if self.brownout.on:
            for replica in self.stand_ins():
                if replica.degraded != "overload":
                    replica.degraded, replica.prefix = "overload", b""

    def describe(self, spec: AppVersion) -> None:
        """Take what the route table says of the app."""
        self.spec = spec
        if spec.client_rate is None:
            self.clients = None
        elif self.clients is None or self.clients.rate != spec.client_rate:
            self.clients = ClientBuckets(spec.client_rate, self._admission.clients_max)

    def stand_ins(self) -> list[Replica]:
        """Ready smaller variants of this version, beside a better one."""
        best = self.best[0].rank if self.best else OLD_VERSION_PENALTY
        return [r for r in self.ranked if best < r.rank < OLD_VERSION_PENALTY]

    def stand_ins_inflight(self) -> int:
        """Requests that overflowed to them; 0 when there is no brown-out."""
        return sum([len(r.outstanding) for r in self.stand_ins()]) if self.brownout.on else 0

    @property
    def ready(self) -> bool:
        return bool(self.ranked)

    @property
    def busy(self) -> bool:
        """Does a tick have anything to look at?"""
        return bool(self.inflight or self.waiting or self.suspects)

    def retune(self, settings: GatewayTuning, now: float) -> None:
        """Bring hedge delay, silence bound and budgets up to date. On a timer, some times a second."""
        self.digest.rotate(now)
        requests = self.stats_total.requests + self.stats.requests
        self.retry_budget.deposit(requests - self._deposited, now)
        self.hedge_budget.deposit(requests - self._deposited, now)
        self._deposited = requests
        if self.digest.samples < HEDGE_SAMPLES_MIN:
            return
        hedge, suspicion = settings.hedge, settings.suspicion
        high_s = self.digest.quantile(hedge.quantile) or 0.0
        delay_s = max(high_s * hedge.factor, hedge.delay_ms_min / 1000)
        self.hedge_delay_s = min(delay_s, hedge.delay_ms_max / 1000)
        p99_s = self.digest.quantile(0.99) or 0.0
        self.silence_s = max(p99_s * suspicion.silence_factor, suspicion.silence_ms_min / 1000)

    def observe(self, elapsed_s: float) -> None:
        """On each tick: what was in flight for the last `elapsed_s`."""
        overflowed = self.stand_ins_inflight()
        self.concurrency.observe(self.inflight - overflowed, elapsed_s)
        self.brownout.concurrency.observe(overflowed, elapsed_s)

    def retune_admission(self, now: float) -> bool:
        """Bring the limits up to date, some times a second. True if a brown-out began or ended."""
        spec, brownout, least = self.spec, self.brownout, self._admission.inflight_min
        answers = self.answers - brownout.answers
        overflowed = self.concurrency.refused > 0
        if not self.ranked:
            self.concurrency.skip(answers, now)
        else:
            infer_s, spacing_s = self._measure_batches()
            target_s = target_latency_s(spec.objective_s, spec.deadline_ms / 1000, infer_s)
            self.concurrency.retune(answers, target_s, least * len(self.best), now)
            self.concurrency.spacing_s = max(self.concurrency.spacing_s, spacing_s)
            if brownout.on:
                least *= max(len(self.stand_ins()), 1)
                brownout.concurrency.retune(brownout.answers, target_s, least, now)
        return brownout.retune(overflowed, spec.brownout and bool(self.stand_ins()), now)

    def _measure_batches(self) -> tuple[float, float]:
        """How long one ran of late, and how far apart answers are at least, each batch being full, in s."""
        answers, infer_us_total = self._infer_seen
        before_s = self._infer_s
        if self.answers > answers:
            self._infer_s = (self.infer_us_total - infer_us_total) / (self.answers - answers) / 1e6
            self._infer_seen = self.answers, self.infer_us_total
        # The shorter of two, so that one stall doesn't count.
        return self._infer_s, min(before_s, self._infer_s) / (self.spec.batching.rows_max * len(self.best))


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

    __slots__ = (
        "app", "arrived", "attempts", "body", "client", "deadline", "done", "flights", "hedged", "isolated",
        "json_bytes", "kills", "last_error", "tried",
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
        """`client` is who asks, for rate limits: an identity, else an address."""
        self.app = app
        self.body = body
        self.json_bytes = json_bytes
        self.client = client
        self.arrived = arrived
        self.deadline = deadline
        self.flights: list[Flight] = []
        self.tried: tuple[str, ...] = ()  # replica ids that had it and gave no answer
        self.kills: tuple[str, ...] = ()  # nodes of workers that died with it
        self.attempts = 0
        self.hedged = False
        self.isolated = False
        self.done = False
        self.last_error: UnderstudyError | None = None

    def answered(self, replica: Replica, result: Result, body: Buffer) -> None:
        raise NotImplementedError

    def failed(self, error: UnderstudyError) -> None:
        raise NotImplementedError

    def answered_static(self, static: dict[str, Any]) -> None:
        raise NotImplementedError
