"""What is known and under way to have an app answered again, where its replicas can't."""

from __future__ import annotations

from understudy.core.gateway.activation import PendingActivation
from understudy.core.gateway.recall import Recall


class WayBack:
    """Of one app. `Gateway` decides; `App.refresh` notes what it meets."""

    def __init__(self, now: float) -> None:
        self.was_ready = False
        self.known_since = now
        self.hopeless = False  # nobody can be asked to load it
        self.activation: PendingActivation | None = None
        self.refused: dict[str, float] = {}  # node -> when it refused to activate
        self.recall = Recall()
        self.untrusted = 0  # replicas of the current version that fail
        self.unhealthy_since: float | None = None  # no replica of any version can be trusted

    def arrived(self) -> None:
        """A replica may get requests."""
        self.was_ready = True
        self.hopeless = False
        self.activation = None
        self.refused.clear()

    def judged(self, untrusted: int, healthy: bool, now: float) -> None:
        """`untrusted` replicas of the current version fail; one of any version is `healthy`, or none."""
        self.untrusted = untrusted
        if healthy:
            self.unhealthy_since = self.recall.pending = None
        elif self.unhealthy_since is None:
            self.unhealthy_since = now
