"""What one step wants carried out, in order, and the workers that are to end by it."""

from __future__ import annotations

from collections import deque

from understudy.core.agent import events as ev

KILLED_TOLD_MAX = 16


class Outbox:
    def __init__(self) -> None:
        self._effects: list[ev.Effect] = []
        self._kills: list[str] = []  # to be carried out as soon as the node's state was published
        self._killed: deque[str] = deque(maxlen=KILLED_TOLD_MAX)  # the newest that were in the middle of it
        self.dying: set[str] = set()  # killed, exit not seen yet

    @property
    def killed(self) -> tuple[str, ...]:
        """Workers that were ended here while they may have had requests; the newest of them."""
        return tuple(self._killed)

    def add(self, *effects: ev.Effect) -> None:
        self._effects += effects

    def tell(self, kind: str, message: str, app: str = "", replica: str = "", **data: float | str) -> None:
        self._effects.append(ev.Tell(kind, message, app, replica, dict(data)))

    def kill(self, worker: str) -> None:
        self.dying.add(worker)
        self._effects.append(ev.KillWorker(worker))

    def kill_told(self, worker: str) -> None:
        """One that may have requests. Whoever hears that its connection broke is to know already why."""
        self.dying.add(worker)
        self._killed.append(worker)
        self._kills.append(worker)

    def take(self) -> list[ev.Effect]:
        """Those of the step that ends now."""
        effects, self._effects = self._effects, []
        if not self._kills:
            return effects
        told = [effect for effect in effects if isinstance(effect, ev.Publish)]
        kills = [ev.KillWorker(worker) for worker in self._kills]
        self._kills.clear()
        return [*told, *kills, *(effect for effect in effects if not isinstance(effect, ev.Publish))]
