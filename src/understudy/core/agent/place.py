"""What is wrong with this node itself, as opposed to what runs on it."""

from __future__ import annotations


class Place:
    """Troubles by their source, one sentence each. They end when their source says so."""

    DISK, LOADING, FORKING = "disk", "loading", "forking"

    def __init__(self) -> None:
        self._troubles: dict[str, str] = {}
        self.warning = ""  # of what will be trouble if nobody sees to it

    @property
    def troubles(self) -> tuple[str, ...]:
        return tuple(text for _, text in sorted(self._troubles.items()))

    def take(self, source: str, trouble: str = "") -> bool:
        """What `source` says now; empty if all is well. Whether the node became unwell, or well, by it."""
        before = bool(self._troubles)
        self._troubles.pop(source, None)
        if trouble:
            self._troubles[source] = trouble
        return before != bool(self._troubles)
