"""Which role may send which message to which, as data. Workers are asked by whoever reaches them.

A message that isn't listed closes the link that it came by: its sender isn't who it says, or is damaged.
What a newer version sends, that this one doesn't know, is left out instead.
"""

from __future__ import annotations

from understudy.wire.errors import ProtocolError
from understudy.wire.messages import (
    Activate,
    Activated,
    ArtifactPart,
    Cancel,
    Excuse,
    Failure,
    GatewayStats,
    Heartbeat,
    Hello,
    Measure,
    Measured,
    Message,
    NodeState,
    Ping,
    Pong,
    Prepare,
    Prepared,
    ReadArtifact,
    Report,
    Target,
)
from understudy.wire.records import RouteTable

# (sender, receiver)
SENDERS: dict[tuple[str, str], frozenset[type]] = {
    ("gateway", "agent"): frozenset({Hello, Activate, Excuse, Ping}),
    ("agent", "gateway"): frozenset({Hello, NodeState, Heartbeat, Activated, Failure, Pong}),
    ("controller", "agent"): frozenset({Hello, Target, Measure, Prepare, ReadArtifact, Cancel, Ping}),
    ("agent", "controller"): frozenset(
        # Target: what it holds, for a controller that knows less.
        {Hello, NodeState, Heartbeat, Report, Target, Measured, Prepared, ArtifactPart, Failure, Pong}
    ),
    ("gateway", "controller"): frozenset({Hello, Report, GatewayStats, RouteTable}),
    ("controller", "gateway"): frozenset({Hello, RouteTable}),
}
REVISION_MAX = 1 << 48  # of targets and tables; they grow by one


def check_sender(sender: str, receiver: str, message: Message | None) -> None:
    """Raises `ProtocolError`. None: of a newer version."""
    if message is None:
        return
    if type(message) not in SENDERS.get((sender, receiver), ()):
        who = sender or "somebody who didn't say who it is"
        raise ProtocolError(f"{who} may not send {type(message).__name__} to this {receiver}")
    if isinstance(message, Target | RouteTable) and not -1 <= message.revision < REVISION_MAX:
        raise ProtocolError(f"{message.revision} can't be a revision")
