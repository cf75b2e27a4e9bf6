"""What a gateway knows of a node."""

from __future__ import annotations

from understudy.core.gateway.suspicion import HeartbeatDetector
from understudy.wire.messages import ReplicaState
from understudy.wire.records import NodeInfo


class KnownNode:
    """What this gateway knows of a node."""

    __slots__ = ("connected", "detector", "incarnation", "info", "killed", "replicas", "reported", "serial")

    def __init__(self, info: NodeInfo, detector: HeartbeatDetector) -> None:
        self.info = info
        self.detector = detector
        self.connected = False
        self.incarnation = 0
        self.serial = -1
        self.replicas: set[str] = set()
        self.reported: tuple[ReplicaState, ...] = ()  # newest, those of apps that aren't known here too
        self.killed: frozenset[str] = frozenset()  # workers that its agent has ended itself, lately

    @property
    def alive(self) -> bool:
        return self.connected and not self.detector.suspect

    def reconnected(self, now: float) -> None:
        """What it says first is the whole truth, also if its clock, and so its incarnation, was set back."""
        self.connected = True
        self.detector.reconnected(now)
        self.incarnation, self.serial = 0, -1
