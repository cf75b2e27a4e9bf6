"""Which variants are kept off all nodes: by evidence from different nodes, and never for good.

A node that reports a crash loop is a witness if it is well otherwise. Two witnesses convict a variant; one
does if no other node could be asked. While there is only one, the variant is started on another node: it
serves there, or there is the second witness. A convicted variant is tried again after a pause, on one node,
which ends the quarantine if it stays ready, and doubles the pause if it crashes. Pure; table: `CASE`.

Deliberately imperfect: pauses are not carried over a restart of the controller, only how many there were.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from understudy.core.controller.nodes import Node
from understudy.core.controller.stored import Quarantined
from understudy.core.lifecycle import CASE, CasePhase, NodePhase, ReplicaPhase, advance
from understudy.core.planning.footprint import replica_mb
from understudy.settings.controller import ControllerTuning
from understudy.wire.messages import NodeState
from understudy.wire.records import AppVersion, VariantKey

WITNESSES_MIN = 2
KEPT_OFF = (CasePhase.QUARANTINED, CasePhase.ON_TRIAL)


@dataclass(slots=True)
class Case:
    """One variant that crashes again and again somewhere."""

    key: VariantKey
    state: CasePhase = CasePhase.DOUBTED
    witnesses: frozenset[str] = frozenset()  # nodes, well otherwise, that reported it
    why: str = ""
    pauses: int = 0
    retry_at_s: float = math.inf
    asked: str = ""  # the node that it is to be started on beyond the plan
    asked_s: float = 0.0
    asked_revision: int = 0  # of the first target that says so
    well_since_s: float = math.inf

    def record(self) -> Quarantined:
        return Quarantined(*self.key, tuple(sorted(self.witnesses)), self.why, self.pauses)


@dataclass(slots=True)
class Lifted:
    """What a node reports of a variant is old until the node knows, or was seen without it since."""

    revision: int  # of the first target that may say so; a node for which nothing else changes gets none
    seen_without: set[str] = field(default_factory=set)

    def outdates(self, name: str, state: NodeState) -> bool:
        return name not in self.seen_without and state.target_revision < self.revision


class Change(NamedTuple):
    """For the event log and the books."""

    kind: str  # a name of `registry.EVENTS`
    message: str
    key: VariantKey
    record: Quarantined | None = None  # to be stored


@dataclass(slots=True)
class Facts:
    nodes: Mapping[str, Node]
    versions: Mapping[tuple[str, int], AppVersion]  # current ones
    revision: int  # of the next target


@dataclass
class Quarantine:
    """All cases. Methods return what changed; `now` is monotonic seconds."""

    tuning: ControllerTuning
    cases: dict[VariantKey, Case] = field(default_factory=dict)
    _lifted: dict[VariantKey, Lifted] = field(default_factory=dict)
    _former: dict[VariantKey, tuple[int, float]] = field(default_factory=dict)  # closed: pauses so far, when

    def recall(self, records: Iterable[Quarantined], now: float) -> None:
        for r in records:
            key = r.key
            case = Case(key, CasePhase.QUARANTINED, frozenset(r.nodes), r.why, max(r.pauses, 1))
            case.retry_at_s = now + self._pause_s(case)
            self.cases[key] = case

    @property
    def keys(self) -> frozenset[VariantKey]:
        """Variants that are not to be planned."""
        return frozenset(key for key, case in self.cases.items() if case.state in KEPT_OFF)

    @property
    def asked(self) -> dict[str, tuple[VariantKey, ...]]:
        """What is to be started beyond the plan, by node."""
        found: dict[str, tuple[VariantKey, ...]] = {}
        for key, case in sorted(self.cases.items()):
            if case.asked:
                found[case.asked] = (*found.get(case.asked, ()), key)
        return found

    def forget(self, app: str) -> None:
        """Its versions are no more, or not current."""
        self.cases = {key: case for key, case in self.cases.items() if key[0] != app}
        self._former = {key: former for key, former in self._former.items() if key[0] != app}

    def lift(self, key: VariantKey, revision: int) -> None:
        """By an operator, or because it proved itself."""
        del self.cases[key]
        self._lifted[key] = Lifted(revision)

    def look(self, facts: Facts, now: float) -> list[Change]:
        """Take in what the nodes report now."""
        reports = self._reports(facts)
        for key in reports.keys() - self.cases.keys():
            self.cases[key] = self._opened(key, now)
        changes: list[Change] = []
        for case in list(self.cases.values()):
            if case.key[:2] not in facts.versions:
                del self.cases[case.key]
                continue
            reported = reports.get(case.key, frozenset())
            match case.state:
                case CasePhase.DOUBTED:
                    changes += self._weigh(case, reported, facts, now)
                case CasePhase.QUARANTINED:
                    changes += self._retry(case, facts, now)
                case CasePhase.ON_TRIAL:
                    changes += self._try(case, reported, facts, now)
        return changes

    def _reports(self, facts: Facts) -> dict[VariantKey, frozenset[str]]:
        """Nodes that are well otherwise, by what crashes there."""
        self._note_who_is_without(facts)
        found: dict[VariantKey, frozenset[str]] = {}
        for name, state in _observed(facts.nodes):
            for key in state.quarantined:
                lifted = self._lifted.get(key)
                outdated = lifted is not None and lifted.outdates(name, state)
                if not outdated and key[:2] in facts.versions and is_well(state, key[0]):
                    found[key] = found.get(key, frozenset()) | {name}
        return found

    def _note_who_is_without(self, facts: Facts) -> None:
        for name, state in _observed(facts.nodes):
            for key in self._lifted.keys() - set(state.quarantined):
                self._lifted[key].seen_without.add(name)

    def _opened(self, key: VariantKey, now: float) -> Case:
        pauses, closed_s = self._former.pop(key, (0, -math.inf))
        case = Case(key, pauses=pauses)
        if now - closed_s > self._pause_s(case):
            case.pauses = 0  # it was well for longer than it had to wait: this is another story
        return case

    def _weigh(self, case: Case, reported: frozenset[str], facts: Facts, now: float) -> list[Change]:
        case.witnesses = frozenset(case.witnesses & facts.nodes.keys()) | reported
        candidates = self._candidates(case, facts)
        if case.asked in case.witnesses or case.asked not in candidates:
            case.asked = ""
        alone = bool(reported) and not candidates and not self._awaited(case, facts)
        if len(case.witnesses) >= WITNESSES_MIN or alone:
            return [self._convict(case, now)]
        if not reported:
            case.well_since_s = min(case.well_since_s, now)
            if now - case.well_since_s >= self.tuning.trial_s:
                self._close(case, facts, now)
            return []
        case.well_since_s = math.inf
        if not case.asked and candidates and not self._runs_elsewhere(case, facts):
            self._ask(case, candidates[0], facts, now)
            message = f"{case.key[2]} crash-loops on {_names(reported)} only: starting it on {case.asked} too"
            return [Change("variant.doubted", message, case.key)]
        return []

    def _convict(self, case: Case, now: float) -> Change:
        nodes = _names(case.witnesses)
        alone = "" if len(case.witnesses) >= WITNESSES_MIN else "; no other node could be asked"
        case.why = f"crashed again and again on {nodes}, otherwise well{alone}"
        case.state = advance(CASE, case.state, "convicted")
        self._pause(case, now)
        return self._told("quarantine.recorded", case, f"{case.why}: not placed anywhere", now)

    def _retry(self, case: Case, facts: Facts, now: float) -> list[Change]:
        candidates = self._candidates(case, facts)
        lonely = len(case.witnesses) < WITNESSES_MIN and bool(candidates)
        if now < case.retry_at_s and not lonely:
            return []
        node = next(iter([*candidates, *self._roomiest(case, facts)]), "")
        if not node:
            return []
        case.state = advance(CASE, case.state, "tried")
        self._ask(case, node, facts, now)
        return [self._told("quarantine.tried", case, f"tried again on {node}", now)]

    def _try(self, case: Case, reported: frozenset[str], facts: Facts, now: float) -> list[Change]:
        node = facts.nodes.get(case.asked)
        state = node.observed if node is not None and node.state == NodePhase.READY else None
        told = state is not None and state.target_revision >= case.asked_revision
        if told and case.asked in reported:
            case.witnesses |= {case.asked}
            case.state = advance(CASE, case.state, "crashed")
            case.why = f"crashed again and again on {_names(case.witnesses)}, otherwise well"
            self._pause(case, now)
            return [self._told("quarantine.recorded", case, "crashed on trial: not placed anywhere", now)]
        if state is not None and any(
            r.key == case.key and r.state == ReplicaPhase.READY for r in state.replicas
        ):
            case.well_since_s = min(case.well_since_s, now)
            if now - case.well_since_s >= self.tuning.trial_s:
                case.state = advance(CASE, case.state, "proved")
                change = Change("quarantine.ended", f"{case.key[2]} runs on {case.asked}", case.key)
                self._close(case, facts, now)
                return [change]
            return []
        case.well_since_s = math.inf
        if state is None or now - case.asked_s > self.tuning.trial_timeout_s:
            case.state = advance(CASE, case.state, "unanswered")
            case.pauses -= 1  # it wasn't its fault
            self._pause(case, now)
        return []

    def _close(self, case: Case, facts: Facts, now: float) -> None:
        self._former[case.key] = (case.pauses, now)
        self.lift(case.key, facts.revision)
        self._note_who_is_without(facts)

    def _ask(self, case: Case, node: str, facts: Facts, now: float) -> None:
        case.asked, case.asked_s, case.asked_revision = node, now, facts.revision
        case.well_since_s = math.inf

    def _pause(self, case: Case, now: float) -> None:
        case.asked = ""
        case.pauses = max(case.pauses, 0) + 1
        case.retry_at_s = now + self._pause_s(case)

    def _pause_s(self, case: Case) -> float:
        doubled_s = self.tuning.quarantine_pause_s * 2.0 ** min(max(case.pauses - 1, 0), 32)
        return min(doubled_s, self.tuning.quarantine_pause_s_max)

    def _told(self, kind: str, case: Case, what: str, now: float) -> Change:
        again = (
            f"; tried again in {case.retry_at_s - now:.0f} s" if case.state == CasePhase.QUARANTINED else ""
        )
        message = f"{case.key[2]} of version {case.key[1]} {what}{again}"
        return Change(kind, message, case.key, case.record())

    def _candidates(self, case: Case, facts: Facts) -> list[str]:
        """Nodes that could tell more: well, not witnesses already, with room; the roomiest first."""
        rooms = self._roomiest(case, facts)
        return [name for name, room in rooms.items() if name not in case.witnesses and room >= 0]

    def _awaited(self, case: Case, facts: Facts) -> bool:
        """Whether a node that could be asked is only out of sight."""
        nodes = facts.nodes.items()
        return any(
            n.plannable and n.state != NodePhase.READY and name not in case.witnesses for name, n in nodes
        )

    def _runs_elsewhere(self, case: Case, facts: Facts) -> bool:
        found = [(name, r) for name, state in _observed(facts.nodes) for r in state.replicas]
        return any(
            r.key == case.key and r.state == ReplicaPhase.READY and name not in case.witnesses
            for name, r in found
        )

    def _roomiest(self, case: Case, facts: Facts) -> dict[str, float]:
        """Nodes that are well -> memory that is free beside the variant in MB, the roomiest first."""
        variant = facts.versions[case.key[:2]].variant(case.key[2])
        needs_mb = replica_mb(variant) if variant is not None else 0.0
        rooms = {}
        for name, state in _observed(facts.nodes):
            node = facts.nodes[name]
            if node.plannable and node.state == NodePhase.READY and not state.trouble:
                has_it = any(r.key == case.key and r.memory_mb for r in state.replicas)
                free_mb = node.info.memory_mb - state.memory_used_mb
                rooms[name] = free_mb if has_it else free_mb - needs_mb
        return dict(sorted(rooms.items(), key=lambda item: (-item[1], item[0])))


def is_well(state: NodeState, app: str) -> bool:
    """Whether a node's crashes, as it reported them, say something about `app`.

    Not where the node has trouble of its own, nor where other apps crash as well and nothing is ready.
    """
    if state.trouble:
        return False
    others_fail = any(key[0] != app for key in state.quarantined)
    return not others_fail or any(replica.state == ReplicaPhase.READY for replica in state.replicas)


def _observed(nodes: Mapping[str, Node]) -> list[tuple[str, NodeState]]:
    return [(name, n.observed) for name, n in sorted(nodes.items()) if n.observed is not None and n.connected]


def _names(nodes: Iterable[str]) -> str:
    return " and ".join(sorted(nodes))
