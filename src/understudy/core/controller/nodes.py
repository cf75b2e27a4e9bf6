"""Which nodes are there: leases, suspicion, return. Table: `lifecycle.NODE`. Pure.

Deliberately imperfect: nodes are judged by what this controller hears. A node cut off from the controller
alone is declared dead and planned around although it serves on; gateways judge for themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from understudy.core.controller.stored import StoredNode
from understudy.core.lifecycle import NODE, NodePhase, advance, permits
from understudy.settings.controller import ControllerTuning
from understudy.wire.errors import cut
from understudy.wire.messages import Heartbeat, Hello, NodeState
from understudy.wire.records import NodeInfo

# States with a lease to lose.
WATCHED = (NodePhase.UNKNOWN, NodePhase.READY, NodePhase.SUSPECT, NodePhase.DRAINED)
# A replica on any other may be gone already.
ANSWERING = (NodePhase.READY, NodePhase.RETURNING, NodePhase.DRAINED)
# May hold replicas: nothing is moved on a mere suspicion.
PLANNABLE = (NodePhase.UNKNOWN, NodePhase.READY, NodePhase.SUSPECT)
DEATHS_MAX = 16  # remembered of one node; 2 ** 16 stability windows are longer than any limit on them


SANDBOX_CHARS_MAX = 1000


@dataclass(slots=True)
class Node:
    info: NodeInfo
    state: NodePhase
    heard_s: float  # newest sign of life; for an unknown node, when we began to wait for one
    connected: bool = False
    drain: bool = False  # wanted by an operator; done as soon as the state permits
    deaths_s: list[float] = field(default_factory=list)  # not older than flap_memory_s
    stable_at_s: float = 0.0  # while returning
    observed: NodeState | None = None  # its newest report over the present connection
    observed_s: float = 0.0  # when that came
    sandbox: str = ""  # as its agent says

    @property
    def plannable(self) -> bool:
        return self.state in PLANNABLE and not self.drain

    def record(self) -> StoredNode:
        trusted = self.state not in (NodePhase.DEAD, NodePhase.RETURNING)
        return StoredNode(self.info, trusted, self.drain, len(self.deaths_s))


@dataclass(frozen=True, slots=True)
class Transition:
    """A node's change of state. `kind` is the event's name in the registry."""

    node: str
    kind: str
    reason: str


class Nodes:
    """All nodes ever heard of. Methods return what changed; times are monotonic seconds."""

    def __init__(
        self,
        tuning: ControllerTuning,
        remembered: dict[str, StoredNode],
        configured: frozenset[str],
        now: float,
    ) -> None:
        self._tuning = tuning
        self._ticked_s = now
        self._hold_until_s = now + tuning.start_grace_ms / 1000
        self.by_name: dict[str, Node] = {}
        for name, stored in remembered.items():
            if not stored.trusted and name not in configured:
                continue  # it died and was taken out of the cluster file
            state = NodePhase.UNKNOWN if stored.trusted else NodePhase.DEAD
            self.by_name[name] = Node(
                stored.info, state, now, drain=stored.drain, deaths_s=[now] * stored.flaps
            )
        self._recorded = {name: node.record() for name, node in self.by_name.items()}

    def unrecorded(self) -> Iterator[tuple[Node, StoredNode]]:
        """What is to be stored of nodes, where it isn't what was given here last."""
        for name, node in self.by_name.items():
            record = node.record()
            if self._recorded.get(name) != record:
                self._recorded[name] = record
                yield node, record

    def hello(self, hello: Hello, now: float) -> list[Transition]:
        info = NodeInfo(
            hello.name, hello.site or "default", hello.address, hello.memory_mb, hello.cores, hello.devices
        )
        node = self.by_name.get(hello.name)
        if node is None:
            node = self.by_name[hello.name] = Node(info, NodePhase.UNKNOWN, now)
        node.info, node.sandbox = info, cut(hello.sandbox, SANDBOX_CHARS_MAX)
        node.connected = True
        node.observed = None
        return self._heard(node, now)

    def reported(self, state: NodeState, now: float) -> list[Transition]:
        """Take in `state` unless a newer one was seen; `Node.observed` tells."""
        node = self.by_name.get(state.node)
        if node is None or not node.connected:
            return []
        seen = node.observed
        if seen is None or (state.incarnation, state.serial) >= (seen.incarnation, seen.serial):
            node.observed, node.observed_s = state, now
        return self._heard(node, now)

    def heartbeat(self, beat: Heartbeat, now: float) -> list[Transition]:
        node = self.by_name.get(beat.node)
        return self._heard(node, now) if node is not None and node.connected else []

    def proven_ago_s(self, name: str, replica: str) -> float | None:
        """Since an inference of this replica succeeded, as its agent told; None if it told nothing."""
        node = self.by_name[name]
        ago_s = node.observed.proven_ago_s.get(replica) if node.observed is not None else None
        return None if ago_s is None else round(ago_s + max(self._ticked_s - node.observed_s, 0.0), 1)

    def link_lost(self, name: str, now: float) -> list[Transition]:
        node = self.by_name[name]
        node.connected = False
        if not permits(NODE, node.state, "link_lost"):
            return []
        return [self._advance(node, "link_lost", now, "its connection was lost")]

    def drain(self, name: str, now: float) -> list[Transition]:
        node = self.by_name[name]
        if node.drain:
            return []
        node.drain = True
        return self._apply_drain(node, now) or [Transition(name, "node.drain_asked", "by an operator")]

    def undrain(self, name: str, now: float) -> list[Transition]:
        node = self.by_name[name]
        if not node.drain:
            return []
        node.drain = False
        if not permits(NODE, node.state, "undrain_asked"):
            return [Transition(name, "node.undrained", "asked by an operator")]
        return [self._advance(node, "undrain_asked", now, "asked by an operator")]

    def tick(self, now: float) -> list[Transition]:
        """Judge silence. To be called every reconcile_interval_ms; a late call means that we were away."""
        tuning = self._tuning
        lease_s = tuning.lease_ms / 1000
        late_s = now - self._ticked_s - tuning.reconcile_interval_ms / 1000
        self._ticked_s = now
        if late_s > lease_s / 2:
            # What the nodes sent while this process stood still may not have been read yet.
            self._hold_until_s = max(self._hold_until_s, now + lease_s)
        silent = [n for n in self._watched() if now - n.heard_s > tuning.suspect_ms / 1000]
        if len(silent) > 1 and 2 * len(silent) > len(self._watched()):
            lease_s *= 2  # more likely that we are cut off than that most nodes died at once
        changes: list[Transition] = []
        for node in self.by_name.values():
            changes += self._judge(node, now, lease_s)
        return changes + self._settle_returning(now)

    def _judge(self, node: Node, now: float, lease_s: float) -> list[Transition]:
        silence_s = now - node.heard_s
        changes = []
        if (
            silence_s > self._tuning.suspect_ms / 1000
            and now >= self._hold_until_s
            and (permits(NODE, node.state, "heartbeat_missed"))
        ):
            changes.append(
                self._advance(node, "heartbeat_missed", now, f"not heard for {1000 * silence_s:.0f} ms")
            )
        if silence_s > lease_s and now >= self._hold_until_s and permits(NODE, node.state, "lease_lost"):
            changes.append(
                self._advance(node, "lease_lost", now, f"not heard for {1000 * silence_s:.0f} ms: lease lost")
            )
        return changes

    def _settle_returning(self, now: float) -> list[Transition]:
        returning = [node for node in self.by_name.values() if node.state == NodePhase.RETURNING]
        # Waiting for stability protects those that are stable. When nobody is, there is nothing to protect.
        nobody = not any(node.state in PLANNABLE for node in self.by_name.values())
        changes = []
        for node in returning:
            if nobody or now >= node.stable_at_s:
                reason = "no other node is there" if nobody else "it stayed for its stability window"
                changes.append(self._advance(node, "stable", now, reason))
                changes += self._apply_drain(node, now)
        return changes

    def _heard(self, node: Node, now: float) -> list[Transition]:
        node.heard_s = now
        if node.state == NodePhase.SUSPECT:
            return [self._advance(node, "heartbeat", now, "heard again"), *self._apply_drain(node, now)]
        if permits(NODE, node.state, "hello"):
            # A node that was frozen, not killed, comes back on its old connection without a Hello.
            reason = "heard again after it was declared dead" if node.state == NodePhase.DEAD else "connected"
            return [self._advance(node, "hello", now, reason), *self._apply_drain(node, now)]
        return []

    def _apply_drain(self, node: Node, now: float) -> list[Transition]:
        if not node.drain or not permits(NODE, node.state, "drain_asked"):
            return []
        return [self._advance(node, "drain_asked", now, "asked by an operator")]

    def _advance(self, node: Node, event: str, now: float, reason: str) -> Transition:
        former, node.state = node.state, advance(NODE, node.state, event)
        if node.state == NodePhase.DEAD:
            self._count_death(node, now)
        if node.state == NodePhase.RETURNING:
            node.stable_at_s = now + self._window_s(node)
            reason += f"; it waits {self._window_s(node):.0f} s before it takes part"
        return Transition(node.info.name, _KINDS[(former, node.state)], reason)

    def _count_death(self, node: Node, now: float) -> None:
        oldest_s = now - self._tuning.flap_memory_s
        node.deaths_s = [*[at for at in node.deaths_s if at > oldest_s][1 - DEATHS_MAX :], now]

    def _window_s(self, node: Node) -> float:
        tuning = self._tuning
        doublings = max(len(node.deaths_s) - 1, 0)
        return min(tuning.stability_window_s * 2.0**doublings, tuning.stability_window_s_max)

    def _watched(self) -> list[Node]:
        return [node for node in self.by_name.values() if node.state in WATCHED]


_KINDS: dict[tuple[NodePhase, NodePhase], str] = {
    (NodePhase.UNKNOWN, NodePhase.READY): "node.joined",
    (NodePhase.UNKNOWN, NodePhase.DEAD): "node.died",
    (NodePhase.READY, NodePhase.SUSPECT): "node.suspected",
    (NodePhase.SUSPECT, NodePhase.READY): "node.cleared",
    (NodePhase.SUSPECT, NodePhase.DEAD): "node.died",
    (NodePhase.DEAD, NodePhase.RETURNING): "node.returned",
    (NodePhase.RETURNING, NodePhase.READY): "node.stabilised",
    (NodePhase.RETURNING, NodePhase.DEAD): "node.died",
    (NodePhase.READY, NodePhase.DRAINED): "node.drained",
    (NodePhase.DRAINED, NodePhase.READY): "node.undrained",
    (NodePhase.DRAINED, NodePhase.DEAD): "node.died",
}
