"""What the machine wants sent and the shell hasn't sent yet: of each thing the newest only, and never an
older one after a newer one to the same peer.
"""

from __future__ import annotations

from understudy.core.controller.events import SendRoutes, SendTarget


class Unsent:
    def __init__(self) -> None:
        self._targets: dict[str, SendTarget] = {}  # by node
        self._routes: dict[str, SendRoutes] = {}  # by gateway, in the order of their making; "": for all

    def __bool__(self) -> bool:
        return bool(self._targets or self._routes)

    def add(self, effect: SendTarget | SendRoutes) -> None:
        if isinstance(effect, SendTarget):
            self._targets[effect.node] = effect
            return
        if not effect.gateway:
            self._routes.clear()  # it is newer than what any single one was to be sent
        self._routes.pop(effect.gateway, None)
        self._routes[effect.gateway] = effect

    def take(self) -> tuple[list[SendTarget], list[SendRoutes]]:
        taken = list(self._targets.values()), list(self._routes.values())
        self._targets, self._routes = {}, {}
        return taken
