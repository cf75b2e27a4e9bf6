"""What a controller asks of single nodes, over their links: to measure, to prepare, to read."""

from __future__ import annotations

from collections.abc import Mapping

from understudy.adapters.links import FrameLink
from understudy.core.agent.replicas import load_timeout_s
from understudy.core.controller.environments import is_ready
from understudy.core.controller.machine import ControllerMachine
from understudy.core.lifecycle import NodePhase
from understudy.settings.cluster import ClusterConfig
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.messages import ArtifactPart, Measure, Measured, Prepare, Prepared, ReadArtifact
from understudy.wire.records import Environment


class NodesAsked:
    """Methods raise UNAVAILABLE for a node that isn't connected, TIMEOUT, or what it says."""

    def __init__(
        self, config: ClusterConfig, machine: ControllerMachine, links: Mapping[tuple[str, str], FrameLink]
    ) -> None:
        self._config = config
        self._nodes = machine.nodes
        self._links = links

    def ready(self, environment: str = "") -> list[str]:
        """Those that have this environment, too."""
        return [
            name
            for name, node in self._nodes.by_name.items()
            if node.state == NodePhase.READY
            and ("agent", name) in self._links
            and is_ready(environment, node)
        ]

    async def measure(self, node: str, asked: Measure) -> Measured:
        variant = asked.app.variant(asked.variant)
        load_s = load_timeout_s(variant, self._config.agent) if variant is not None else 0.0
        timeout_s = self._config.controller.profile_timeout_s + load_s
        return await self._link(node).call(asked, Measured, timeout_s)

    async def prepare(self, node: str, environment: Environment) -> Prepared:
        timeout_s = self._config.controller.environment_timeout_s
        return await self._link(node).call(Prepare(environment), Prepared, timeout_s)

    async def read(self, node: str, asked: ReadArtifact) -> ArtifactPart:
        timeout_s = self._config.controller.artifacts_check_s
        return await self._link(node).call(asked, ArtifactPart, timeout_s)

    def _link(self, node: str) -> FrameLink:
        link = self._links.get(("agent", node))
        if link is None:
            raise UnderstudyError(Code.UNAVAILABLE, f"node {node} is not connected")
        return link
