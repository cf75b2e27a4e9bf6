"""Questions to the plan, for the API: the facts as they are now, one answer at a time, beside the loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from understudy.controller.solver import in_thread
from understudy.controller.traffic import Traffic
from understudy.core.controller.machine import ControllerMachine
from understudy.core.controller.nodes import ANSWERING
from understudy.core.questions.answers import answer
from understudy.core.questions.losses import Standing
from understudy.core.questions.records import Audit, Question, QuestionAnswered
from understudy.core.questions.spof import GatewayFacts, Surroundings, audit
from understudy.settings.cluster import ClusterConfig
from understudy.wire.errors import Code, UnderstudyError

T = TypeVar("T")


class Questions:
    """One per controller. What it tells is of the plan in force and changes nothing."""

    def __init__(
        self, config: ClusterConfig, name: str, machine: ControllerMachine, traffic: Traffic
    ) -> None:
        self._config = config
        self._name = name
        self._machine = machine
        self._traffic = traffic
        self._busy = threading.Lock()  # held until the thread ends, even if nobody waits for it any more

    async def ask(self, question: Question) -> QuestionAnswered:
        """Raises BUSY while another question is being answered, UNAVAILABLE without a plan; see `answer`."""
        standing, facts = self._standing(), self._machine.planning.input()
        return await self.one_at_a_time(lambda: answer(question, standing, facts))

    async def audit(self) -> Audit:
        """Raises BUSY while a question is being answered, UNAVAILABLE without a plan."""
        standing, around = self._standing(), self._surroundings()
        return await self.one_at_a_time(lambda: audit(standing, around))

    async def one_at_a_time(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises, in a thread. Raises BUSY while another one goes on."""
        if not self._busy.acquire(blocking=False):
            raise UnderstudyError(Code.BUSY, "another question to the plan is being answered; ask again")

        def working() -> T:
            try:
                return work()
            finally:
                self._busy.release()

        return await in_thread(working, "what-if")

    def _standing(self) -> Standing:
        stored = self._machine.plan
        if stored is None:
            raise UnderstudyError(Code.UNAVAILABLE, "there is no plan yet: nothing is deployed")
        releases = self._machine.catalog.releases
        nodes = self._machine.nodes.by_name
        return Standing(
            plan=stored.plan,
            apps=tuple(releases[key].app for key in stored.facts.apps if key in releases),
            nodes=tuple(node.info for _, node in sorted(nodes.items())),
            away=frozenset(name for name, node in nodes.items() if node.state not in ANSWERING),
            quarantined=frozenset(self._machine.quarantined),
            lacking=frozenset(stored.facts.lacking),
            skip_ms=self._config.agent.progressive_skip_ms,
        )

    def _surroundings(self) -> Surroundings:
        table = self._machine.table
        store = self._config.role_dir("controller", self._name)
        artifacts = Path(self._config.artifacts_dir)
        connected = [name for name, view in self._traffic.gateways.items() if view.connected]
        return Surroundings(
            gateways=tuple(
                GatewayFacts(
                    gateway.name,
                    gateway.http,
                    gateway.processes,
                    # Several processes of one call themselves g1.1, g1.2, …
                    any(f"{name}.".startswith(f"{gateway.name}.") for name in connected),
                )
                for gateway in self._config.gateways
            ),
            controllers=tuple(controller.name for controller in self._config.controllers),
            store=str(store),
            artifacts=str(artifacts),
            one_disk=_disk(store) == _disk(artifacts),
            recallable=frozenset(app.app for app in table.previous) if table else frozenset(),
        )


def _disk(path: Path) -> int:
    """Number of the file system, of the nearest folder that is there."""
    while not path.exists():
        path = path.parent
    return path.stat().st_dev
