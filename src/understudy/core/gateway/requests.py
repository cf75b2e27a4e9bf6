"""A request on its way: what is remembered from its arrival to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from understudy.wire.errors import UnderstudyError
from understudy.wire.messages import Result

if TYPE_CHECKING:
    from understudy.core.gateway.rotation import App, Replica


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
        "app", "arrived", "attempts", "body", "deadline", "done", "flights", "hedged", "isolated",
        "json_bytes", "kills", "last_error", "tried",
    )  # fmt: skip

    def __init__(self, app: App, body: bytes, arrived: float, deadline: float, json_bytes: int = -1) -> None:
        self.app = app
        self.body = body
        self.json_bytes = json_bytes
        self.arrived = arrived
        self.deadline = deadline
        self.flights: list[Flight] = []
        self.tried: list[str] = []  # replica ids that had it and gave no answer
        self.kills: list[str] = []  # nodes of workers that died with it
        self.attempts = 0
        self.hedged = False
        self.isolated = False
        self.done = False
        self.last_error: UnderstudyError | None = None

    def answered(self, replica: Replica, result: Result, body: bytes) -> None:
        raise NotImplementedError

    def failed(self, error: UnderstudyError) -> None:
        raise NotImplementedError

    def answered_static(self, static: dict[str, Any]) -> None:
        raise NotImplementedError
