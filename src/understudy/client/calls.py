"""The course of one call: attempts at gateways until one answers, all of it within one deadline.

A connection that can't be made or breaks sends the call to the next gateway at once. An answer that is
late, measured by those before it, gets a rival at another gateway; the first answer wins and the other
attempt is cancelled, which the gateway notices by the closed connection. Only when every gateway was tried
does the call wait: for what a gateway asked in Retry-After, else a random, growing while.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import msgspec

from understudy.client.bodies import Body
from understudy.client.connection import ConnectionBroken, Reply
from understudy.client.errors import ClientError, Timeout, Unavailable, refusal
from understudy.client.gateways import Gateways, KnownGateway
from understudy.wire.errors import Code

ROUNDS_MAX = 8  # through all gateways
BACKOFF_S_MIN, BACKOFF_S_FIRST, BACKOFF_S_MAX = 0.025, 0.25, 1.0  # the upper end doubles
LAG_S = 0.05  # our own loop was that late: what seems late may lie unread in the sockets


METADATA = ""  # everything but inference takes about as long


class Ask(msgspec.Struct, frozen=True):
    """What to ask. `body(binary)` encodes for a gateway, once per form; None: there is nothing to send."""

    method: str
    path: str
    headers: str  # whole lines
    pace: str  # what its latency is compared with: an app, or `METADATA`
    body: Callable[[bool], Body] | None = None
    idempotent: bool = True
    rounds_max: int = ROUNDS_MAX

    def __repr__(self) -> str:
        return f"Ask({self.method} {self.path})"  # the headers hold a key, and tracebacks show what they can


class Attempt:
    """One gateway asked."""

    __slots__ = ("began", "gateway", "number", "sent", "since", "task")

    task: asyncio.Task[Reply | ClientError | ConnectionBroken]

    def __init__(self, gateway: KnownGateway, now: float) -> None:
        self.gateway = gateway
        self.number = gateway.asked()
        self.began = now
        self.since = now  # when the clock of patience started
        self.sent = False  # the request may have been worked on


class Won(msgspec.Struct, frozen=True):
    reply: Reply
    gateway: KnownGateway


class Call:
    """Use once. `run` returns what came; errors are returned too, since a task group would wrap them."""

    def __init__(self, gateways: Gateways, ask: Ask, deadline: float, hedge: bool) -> None:
        self._gateways = gateways
        self._ask = ask
        self._deadline = deadline
        self._pace = gateways.pace(ask.pace)
        self._hedging = hedge and ask.idempotent and len(gateways.all) > 1
        self._look_at = deadline  # when the newest attempt is late enough for a thought about a rival
        self._hedged = False
        self._tried: list[KnownGateway] = []
        self._running: list[Attempt] = []
        self._broke = False
        self._round = 0
        self._error = ClientError(Code.UNAVAILABLE, "no gateway was asked")

    async def run(self) -> Won | ClientError:
        now = self._gateways.clock()
        self._gateways.hedges.deposit(1, now)
        self._gateways.retries.deposit(1, now)
        self._pace.refresh(now)
        async with asyncio.TaskGroup() as tasks:
            try:
                return await self._race(tasks)
            finally:
                for attempt in self._running:
                    attempt.task.cancel()
                    attempt.gateway.abandoned(attempt.number, attempt.since, self._pace.silence_s)

    async def _race(self, tasks: asyncio.TaskGroup) -> Won | ClientError:
        while True:
            if not self._running:
                gateway = await self._next()
                if gateway is None:
                    return self._error
                self._start(tasks, gateway)
            wake_at = min(self._deadline, self._look_at)
            wait_s = max(0.0, wake_at - self._gateways.clock())
            waited = [attempt.task for attempt in self._running]
            await asyncio.wait(waited, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            for attempt in [a for a in self._running if a.task.done()]:
                self._running.remove(attempt)
                settled = self._settle(attempt)
                if settled is not None:
                    return settled
            now = self._gateways.clock()
            if now >= self._deadline:
                return self._timeout()
            if self._running and now >= self._look_at:
                self._look(tasks, now)

    # attempts

    def _start(self, tasks: asyncio.TaskGroup, gateway: KnownGateway) -> None:
        now = self._gateways.clock()
        attempt = Attempt(gateway, now)
        self._look_at = self._next_look(now)
        self._tried.append(gateway)
        self._running.append(attempt)
        attempt.task = tasks.create_task(self._attempt(attempt))

    async def _attempt(self, attempt: Attempt) -> Reply | ClientError | ConnectionBroken:
        gateway, ask = attempt.gateway, self._ask
        gateway.outstanding += 1
        try:
            if ask.body is not None and gateway.binary is None:
                reply = await gateway.exchange([self._head(gateway, "GET", "/v2", 0, None)])
                gateway.binary = takes_binary(reply) if reply.status == 200 else None
            body = ask.body(bool(gateway.binary)) if ask.body is not None else Body((), None)
            head = self._head(gateway, ask.method, ask.path, body.size_bytes, body.json_bytes)

            def sending() -> None:
                attempt.sent = True

            return await gateway.exchange([head, *body.parts], fresh=not ask.idempotent, sending=sending)
        except (ConnectionBroken, ClientError) as error:
            return error
        finally:
            gateway.outstanding -= 1

    def _head(
        self, gateway: KnownGateway, method: str, path: str, length: int, json_bytes: int | None
    ) -> bytes:
        left_ms = max(1, round((self._deadline - self._gateways.clock()) * 1000))
        address = gateway.address
        lines = f"{method} {address.path}{path} HTTP/1.1\r\nHost: {address.authority}\r\n{self._ask.headers}"
        if method == "POST":
            lines += f"Content-Length: {length}\r\nUnderstudy-Timeout-Ms: {left_ms}\r\n"
            kind = "json" if json_bytes is None else "octet-stream"
            lines += f"Content-Type: application/{kind}\r\n"
        if json_bytes is not None:
            lines += f"Inference-Header-Content-Length: {json_bytes}\r\n"
        return f"{lines}\r\n".encode("latin-1")

    # what came of them

    def _settle(self, attempt: Attempt) -> Won | ClientError | None:
        """The end of the call, or None if it goes on."""
        gateway, came = attempt.gateway, attempt.task.result()
        if isinstance(came, ClientError):  # the request can't be sent at all
            gateway.breaker.abandoned(attempt.number)
            return came
        if isinstance(came, ConnectionBroken):
            gateway.failed(attempt.number)
            self._error = Unavailable(Code.LINK_LOST, f"no answer: {came}", gateway=gateway.url)
            if attempt.sent and not self._ask.idempotent:
                return self._error
            if attempt.sent and not self._broke:
                # Perhaps only this connection is gone, with one of several processes behind the address: if
                # nobody else is left, the same gateway gets a second chance at once.
                self._broke = True
                self._tried.remove(gateway)
            return None
        if came.status < 300:
            gateway.answered(attempt.number)
            self._pace.record(self._gateways.clock() - attempt.began)
            return Won(came, gateway)
        error = self._error = _refusal(came, gateway)
        down = error.status == 502 or (error.status == 503 and error.retry_after_s is None)
        if error.code is Code.DRAINING or (down and self._ask.body is not None):
            gateway.failed(attempt.number)
        else:
            gateway.answered(attempt.number)
        if error.status in (429, 503):
            return None  # it says itself that nothing was done
        # A gateway that has just started may not know yet what the others serve.
        return None if self._ask.idempotent and (down or error.code is Code.NOT_FOUND) else error

    async def _next(self) -> KnownGateway | None:
        """The gateway to ask now, maybe after a wait; None: it ends with `self._error`."""
        now = self._gateways.clock()
        fresh = not self._tried
        error = self._error
        elsewhere = error.status not in (429, 503) or error.code in (Code.DRAINING, Code.UNAVAILABLE)
        if fresh or elsewhere:
            gateway = self._gateways.choose(self._tried, idempotent=self._ask.idempotent)
            # A gateway that is gone did no work, so asking another one is no extra load.
            free = fresh or error.status is None or not self._ask.rounds_max
            if gateway is not None and (free or self._may_retry(now)):
                return gateway
        if error.code is Code.NOT_FOUND:
            return None
        self._round += 1
        wait_s = error.retry_after_s
        if wait_s is None:
            longest_s = min(BACKOFF_S_FIRST * 2 ** (self._round - 1), BACKOFF_S_MAX)
            wait_s = random.uniform(BACKOFF_S_MIN, longest_s)
        if self._round > self._ask.rounds_max or now + wait_s >= self._deadline or not self._may_retry(now):
            return None
        await asyncio.sleep(wait_s)
        self._tried.clear()
        return self._gateways.choose(self._tried, idempotent=self._ask.idempotent)

    def _may_retry(self, now: float) -> bool:
        return self._gateways.retries.withdraw(now)

    # lateness

    def _next_look(self, now: float) -> float:
        if not self._hedging:
            return self._deadline
        if not self._hedged:
            # A third of what is left: with a tight deadline, waiting for a quantile would be too late.
            return now + min(self._pace.hedge_s, (self._deadline - now) / 3)
        return self._deadline if self._pace.silence_s is None else now + self._pace.silence_s

    def _look(self, tasks: asyncio.TaskGroup, now: float) -> None:
        """The newest attempt is late: send a rival if the budget permits or its gateway is dumb."""
        newest = self._running[-1]
        if now - self._look_at > LAG_S:
            newest.since = now  # we were late, not the gateway
            self._look_at = self._next_look(now)
            return
        silence_s = self._pace.silence_s
        silent = newest.gateway.heard_at < newest.since
        suspect = silent and silence_s is not None and now - newest.since >= silence_s
        rival = self._gateways.choose_rival(self._tried)
        affordable = rival is not None and not self._hedged and self._gateways.hedges.withdraw(now)
        self._hedged = True  # from here on only silence counts
        self._look_at = self._next_look(now)
        if rival is not None and (affordable or suspect):
            self._start(tasks, rival)

    def _timeout(self) -> ClientError:
        asked = ", ".join(attempt.gateway.url for attempt in self._running)
        what = f"no answer within the deadline; asked {asked}" if asked else str(self._error)
        gateway = self._running[-1].gateway.url if self._running else None
        return Timeout(Code.TIMEOUT, what, gateway=gateway)


class _Error(msgspec.Struct):
    error: str = ""


class _Server(msgspec.Struct):
    extensions: list[str] = []


def takes_binary(reply: Reply) -> bool:
    """Whether a gateway that answers `GET /v2` like this takes binary tensors."""
    try:
        server = msgspec.json.decode(reply.body, type=_Server)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False  # a proxy's page; the request itself will tell
    return "binary_tensor_data" in server.extensions


def _refusal(reply: Reply, gateway: KnownGateway) -> ClientError:
    try:
        message = msgspec.json.decode(reply.body, type=_Error).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        message = ""
    retry_after = reply.headers.get("retry-after", "")
    return refusal(
        reply.status,
        reply.headers.get("understudy-code"),
        message or f"HTTP status {reply.status}",
        request_id=reply.headers.get("x-request-id"),
        gateway=gateway.url,
        retry_after_s=float(retry_after) if retry_after.isdecimal() else None,
    )
