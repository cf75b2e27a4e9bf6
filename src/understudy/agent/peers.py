"""Who the agent talks to: gateways that dial it, controllers that it dials."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from functools import partial

import msgspec
import structlog

from understudy.adapters.links import FrameLink, Listener, keep_connected, listen
from understudy.agent.staging import AnswerPart
from understudy.core.agent import events as ev
from understudy.core.recent import RecentEvents
from understudy.settings.cluster import ClusterConfig
from understudy.wire.errors import ProtocolError, UnderstudyError
from understudy.wire.frames import Frame
from understudy.wire.messages import (
    Activate,
    Activated,
    ArtifactPart,
    Excuse,
    Heartbeat,
    Hello,
    Measure,
    Measured,
    NodeState,
    Ping,
    Pong,
    Prepare,
    Prepared,
    ReadArtifact,
    Report,
    Target,
    decode_message,
)
from understudy.wire.records import Environment, Event
from understudy.wire.senders import check_sender

Preparing = Callable[[Environment, Callable[[UnderstudyError | None], None]], None]


GATEWAY = "gateway"  # the only role that dials an agent


class Peers:
    """Links to gateways and controllers; what they ask becomes events, what happens here is told to all."""

    def __init__(
        self,
        config: ClusterConfig,
        hello: Hello,
        step: Callable[[ev.Event], None],
        held: Callable[[], Target | None],
        read: Callable[[ReadArtifact, AnswerPart], None],
        prepare: Preparing,
    ) -> None:
        self._config = config
        self._hello = hello
        self._step = step
        self._prepare = prepare
        self._held = held
        self._read = read
        self._log = structlog.get_logger()
        self._links: set[FrameLink] = set()  # those that have said who they are
        self._controllers: set[FrameLink] = set()
        self._server: Listener | None = None
        self._state: NodeState | None = None
        self._unsent = RecentEvents(config.agent.events_max)
        self._tokens = itertools.count(1)
        self._askers: dict[int, tuple[FrameLink, int]] = {}
        self._publishing = False

    async def listen(self) -> None:
        """Raises `ConfigError` if the address can't be had."""
        self._server = await listen(self._hello.address, lambda: FrameLink(self._received, self._lost))

    async def keep_listening(self, told: Callable[[str], None]) -> None:
        """As `links.Listener.keep`."""
        assert self._server is not None
        await self._server.keep(told)

    async def follow_controller(self, address: str) -> None:
        """Stay connected. Ends when cancelled."""

        async def serve(link: FrameLink) -> None:
            link.peer = asyncio.Event()
            self._controllers.add(link)
            self._greet(link)
            held = self._held()
            if held is not None and held.revision > 0:
                link.send(held)  # it may know less
            if self._unsent:
                link.send(Report(tuple(self._unsent.take())))
            await link.peer.wait()

        def lost(link: FrameLink, _error: Exception | None) -> None:
            self._lost(link, _error)
            if link.peer is not None:
                link.peer.set()

        await keep_connected(address, lambda: FrameLink(self._received, lost), serve)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for link in list(self._links):
            link.close()

    # told to all

    def publish(self, state: NodeState) -> None:
        """Sent at the end of this loop turn, so that one turn's changes travel together."""
        self._state = state
        if not self._publishing:
            self._publishing = True
            asyncio.get_running_loop().call_soon(self._publish)

    def _publish(self) -> None:
        self._publishing = False
        if self._state is not None:
            for link in self._links:
                link.send(self._state)

    async def beat(self) -> None:
        """Heartbeats, with how late this loop was. Ends when cancelled."""
        loop = asyncio.get_running_loop()
        interval_ms = self._config.agent.heartbeat_interval_ms
        due_s = loop.time()
        while True:
            lag_ms = max(0.0, loop.time() - due_s) * 1000
            if self._state is not None:
                beat = Heartbeat(
                    self._hello.name, self._hello.incarnation, self._state.serial, interval_ms, lag_ms
                )
                for link in self._links:
                    link.send(beat)
            due_s = max(due_s + interval_ms / 1000, loop.time())
            await asyncio.sleep(due_s - loop.time())

    def report(self, event: Event) -> None:
        """To the event log; kept, bounded, while no controller listens."""
        if not self._controllers:
            self._unsent.add(event)
        for link in self._controllers:
            link.send(Report((event,)))

    # answers

    def answer(self, token: int, answer: Activated | Measured) -> None:
        link, stream = self._askers.pop(token)
        link.send(answer, stream)

    def refuse(self, token: int, error: UnderstudyError) -> None:
        link, stream = self._askers.pop(token)
        link.fail(stream, error)

    # links

    def _received(self, link: FrameLink, frame: Frame) -> None:
        message = decode_message(frame)
        if link in self._controllers:  # it was dialled
            check_sender("controller", "agent", message)
        else:
            if isinstance(message, Hello) and message.role == GATEWAY:
                link.peer = GATEWAY
            check_sender(link.peer or "", "agent", message)
        match message:
            case Hello() as hello:
                if link not in self._controllers:  # a controller was greeted when it was dialled
                    self._greet(link)
                self._log.info("peer.connected", role=hello.role, peer=hello.name)
            case Activate() as activate:
                self._step(ev.ActivateAsked(activate, self._token(link, frame.stream)))
            case Excuse(workers):
                self._step(ev.CrashesExcused(workers))
            case Target() as target:
                self._log.info("target.received", revision=target.revision, replicas=len(target.replicas))
                self._step(ev.TargetReceived(target))
            case Measure() as measure:
                self._step(ev.MeasureAsked(measure, self._token(link, frame.stream)))
            case Prepare(environment):
                answer = partial(self._prepared, link, frame.stream)
                self._prepare(environment, answer)
            case ReadArtifact() as asked:
                self._read(asked, partial(_answer, link, frame.stream))
            case Ping():
                link.send(Pong(), frame.stream)
            case _:
                return  # newer than this version, or nothing for an agent

    def _prepared(self, link: FrameLink, stream: int, error: UnderstudyError | None) -> None:
        if error is not None:
            link.fail(stream, error)
        else:
            link.send(Prepared(), stream)

    def _greet(self, link: FrameLink) -> None:
        self._links.add(link)
        revision = self._state.target_revision if self._state is not None else self._hello.revision
        link.send(msgspec.structs.replace(self._hello, revision=revision))
        if self._state is not None:
            link.send(self._state)

    def _lost(self, link: FrameLink, error: Exception | None) -> None:
        if isinstance(error, ProtocolError):
            self._log.warning("peer.refused", reason=str(error))
        self._links.discard(link)
        self._controllers.discard(link)

    def _token(self, link: FrameLink, stream: int) -> int:
        token = next(self._tokens)
        self._askers[token] = (link, stream)
        return token


def _answer(link: FrameLink, stream: int, answer: ArtifactPart | UnderstudyError) -> None:
    if isinstance(answer, UnderstudyError):
        link.fail(stream, answer)
    else:
        link.send(answer, stream)
