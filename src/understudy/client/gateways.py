"""The gateways that a client knows: their connections, which of them to ask, and how patient to be.

Lives here: everything that outlives a call. Does not live here: the course of one call (`calls`).
All times are seconds of the event loop's clock, which is monotonic.
"""

from __future__ import annotations

import random
import ssl
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from understudy.client.connection import Address, Connection, Reply, connect
from understudy.client.errors import InvalidInput
from understudy.core.gateway.breaker import Breaker
from understudy.core.gateway.budget import Budget
from understudy.core.gateway.latency import LatencyDigest
from understudy.settings.gateway import BreakerSettings
from understudy.wire.errors import Code
from understudy.wire.frames import Buffer

IDLE_S_MAX = 30.0  # well below the 75 s after which gateways close, so that we rarely meet a closing one
IDLE_MAX = 64  # connections kept open to one gateway
SILENCES_MAX = 3  # races in a row that a gateway lost without a word

# One refused or broken connection is enough: there are others to ask, and the next probe isn't far.
AVOIDANCE = BreakerSettings(consecutive_failures=1, open_s=1.0, open_s_max=30.0)


class KnownGateway:
    """One gateway as this client sees it."""

    def __init__(self, url: str, address: Address, clock: Callable[[], float]) -> None:
        self.url = url
        self.address = address
        self.breaker = Breaker(AVOIDANCE, clock())
        self._asked = 0
        self.outstanding = 0
        self.heard_at = 0.0  # when bytes came last, on any connection
        self.binary: bool | None = None  # whether it takes binary tensors; None: not asked yet
        self._clock = clock
        self._silences = 0
        self._closed = False
        self._idle: list[Connection] = []

    async def exchange(
        self,
        parts: Sequence[Buffer],
        *,
        fresh: bool = False,
        sending: Callable[[], None] | None = None,
    ) -> Reply:
        """Send a request and wait for its answer, on a `fresh` connection or a kept one.

        `sending` is called when the first byte is about to leave. Raises `ConnectionBroken`.
        """
        connection = await self._acquire(fresh)
        try:
            if sending is not None:
                sending()
            return await connection.exchange(parts)
        finally:
            self._release(connection)

    async def _acquire(self, fresh: bool) -> Connection:
        now = self._clock()
        while self._idle and not fresh:
            connection = self._idle.pop()
            if connection.reusable and now - connection.idle_since < IDLE_S_MAX:
                return connection
            connection.abort()
        return await connect(self.address, self._hear)

    def _release(self, connection: Connection) -> None:
        if connection.reusable and len(self._idle) < IDLE_MAX and not self._closed:
            connection.idle_since = self._clock()
            self._idle.append(connection)
        else:
            connection.abort()

    def _hear(self) -> None:
        self.heard_at = self._clock()
        self._silences = 0

    def asked(self) -> int:
        """A number for what is sent to it now, by which the breaker knows its probe."""
        self._asked += 1
        self.breaker.sent(self._asked)
        return self._asked

    def answered(self, number: int) -> None:
        self.breaker.succeeded(self._clock(), number, 0.0)

    def failed(self, number: int) -> None:
        """It is down or can't serve: avoid it for a while."""
        if self.breaker.failed(self._clock(), random.random(), number):
            self.binary = None  # it may come back as another version
            self._drop_idle()

    def abandoned(self, number: int, since: float, silence_s: float | None) -> None:
        """An attempt since `since` was given up. Silence of `silence_s` (None: unknown) is a verdict."""
        if self.heard_at >= since:
            self.breaker.abandoned(number)
            return
        self._silences += 1
        too_long = silence_s is not None and self._clock() - since >= silence_s
        if too_long or self._silences >= SILENCES_MAX or not self.breaker.closed:
            self.failed(number)

    def close(self) -> None:
        """Keep no connection any more."""
        self._closed = True
        self._drop_idle()

    def _drop_idle(self) -> None:
        for connection in self._idle:
            connection.abort()
        self._idle.clear()


class AppPace:
    """How long one app's answers take, and what that means for waiting."""

    HEDGE_S_MIN, HEDGE_S_MAX = 0.010, 1.0  # the maximum holds until the app is known
    SILENCE_S_MIN = 0.050
    SILENCE_FACTOR = 8.0  # times the 99th percentile, as gateways judge their replicas
    SAMPLES_MIN = 20
    REFRESH_S = 0.2

    def __init__(self, now: float) -> None:
        self._digest = LatencyDigest(now)
        self._refresh_at = now
        self.hedge_s = self.HEDGE_S_MAX
        self.silence_s: float | None = None  # None: not known yet

    def record(self, latency_s: float) -> None:
        self._digest.record(latency_s)

    def refresh(self, now: float) -> None:
        """Bring the waits up to date; cheap unless it is time."""
        if now < self._refresh_at:
            return
        self._refresh_at = now + self.REFRESH_S
        self._digest.rotate(now)
        if self._digest.samples < self.SAMPLES_MIN:
            return
        p95, p99 = self._digest.quantile(0.95) or 0.0, self._digest.quantile(0.99) or 0.0
        self.hedge_s = min(max(p95, self.HEDGE_S_MIN), self.HEDGE_S_MAX)
        self.silence_s = max(self.SILENCE_FACTOR * p99, self.SILENCE_S_MIN)


class Gateways:
    """All of them. Belongs to one event loop, whose clock it is given."""

    HEDGE_FRACTION = 0.05
    RETRY_FRACTION = 0.2
    BUDGET_MIN = 5  # of each kind, in 10 s
    PACES_MAX = 1000

    def __init__(self, addresses: Sequence[tuple[str, Address]], clock: Callable[[], float]) -> None:
        now = clock()
        self.all = [KnownGateway(url, address, clock) for url, address in addresses]
        random.shuffle(self.all)  # a thousand clients with one list shall not all begin with its first
        self.clock = clock
        self.hedges = Budget(self.HEDGE_FRACTION, self.BUDGET_MIN, now)
        self.retries = Budget(self.RETRY_FRACTION, self.BUDGET_MIN, now)
        self._paces: dict[str, AppPace] = {}
        self._turn = 0

    def pace(self, app: str) -> AppPace:
        pace = self._paces.get(app)
        if pace is None:
            if len(self._paces) >= self.PACES_MAX:
                self._paces.clear()
            pace = self._paces[app] = AppPace(self.clock())
        return pace

    def choose(self, tried: Sequence[KnownGateway], *, idempotent: bool = True) -> KnownGateway | None:
        """The gateway for the next attempt: permitted, least busy, in turn. None if all were tried.

        If all are avoided, the one whose time is up first is asked all the same: it can't get worse. What
        can't be sent twice is no probe of a gateway that failed.
        """
        left = [gateway for gateway in self.all if gateway not in tried]
        now = self.clock()
        good = [g for g in left if g.breaker.closed or (idempotent and g.breaker.permits(now))]
        return self._in_turn(good) or min(left, key=lambda g: g.breaker.open_until, default=None)

    def choose_rival(self, tried: Sequence[KnownGateway]) -> KnownGateway | None:
        """The gateway for a second copy: none is better than one that is avoided."""
        now = self.clock()
        return self._in_turn([g for g in self.all if g not in tried and g.breaker.permits(now)])

    def _in_turn(self, good: list[KnownGateway]) -> KnownGateway | None:
        self._turn += 1
        first = self._turn % len(good) if good else 0
        return min(good[first:] + good[:first], key=lambda g: g.outstanding, default=None)

    def close(self) -> None:
        for gateway in self.all:
            gateway.close()


def parse_addresses(urls: str | Sequence[str], ca: str | None) -> list[tuple[str, Address]]:
    """URLs as they are shown and connected to. `ca`: certificates to trust. Raises `InvalidInput`."""
    given = [urls] if isinstance(urls, str) else list(urls)
    if not given:
        raise InvalidInput(Code.CONFIG, "gateways: give the URL of one gateway at least")
    context: ssl.SSLContext | None = None
    addresses = []
    for url in given:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise InvalidInput(Code.CONFIG, f"gateways: {_shown(url)} is no URL like http://host:8080")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise InvalidInput(Code.CONFIG, f"gateways: {_shown(url)} has more than host, port and path")
        if parts.scheme == "https":
            context = context or _tls(ca)
        secure = parts.scheme == "https"
        path = parts.path.rstrip("/")
        address = Address(parts.hostname, port or (443 if secure else 80), path, context if secure else None)
        addresses.append((f"{parts.scheme}://{address.authority}{path}", address))
    return addresses


def _shown(url: str) -> str:
    """Without what may be a password."""
    return repr(url.rpartition("@")[2])


def _tls(ca: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInput(Code.CONFIG, f"ca: {ca} can't be used: {reason}") from error
