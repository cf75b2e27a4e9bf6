"""When the current version fails wherever it runs: have the previous one loaded again."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from understudy.core.gateway.activation import PendingActivation, choose
from understudy.wire.records import AppVersion, Contingency, NodeInfo

PATIENCE_S = 1.0  # without a healthy replica, before it is the version's fault; one success ends it
REFUSAL_S = 0.5  # before a node that refused is asked again


class Recall:
    """Per app. `previous` is None where there is none to call back."""

    __slots__ = ("pending", "previous", "refused")

    def __init__(self) -> None:
        self.previous: AppVersion | None = None
        self.pending: PendingActivation | None = None
        self.refused: dict[str, float] = {}  # node -> when

    def next(
        self, failing_s: float, nodes: Iterable[NodeInfo], alive: set[str], now: float, wait_s: float
    ) -> Contingency | None:
        """What to ask for now. The current version has been failing for `failing_s`, and nobody answers.

        `wait_s`: for a node that was asked, until another one is.
        """
        if self.previous is None or failing_s < PATIENCE_S:
            return None
        if self.pending is not None:
            if now - self.pending.asked_at < wait_s:
                return None
            self.refuse(self.pending.contingency.node, now)
        self.refused = {node: at for node, at in self.refused.items() if now - at < REFUSAL_S}
        choice = choose(self.previous, (), nodes, alive, set(), self.refused)
        if choice is None:
            return None
        choice = msgspec.structs.replace(choice, failure=f"version:{self.previous.version + 1}")
        self.pending = PendingActivation(choice, now)
        return choice

    def refuse(self, node: str, now: float) -> None:
        self.refused[node] = now
        self.pending = None
