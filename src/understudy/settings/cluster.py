"""CLUSTER.toml: which nodes, gateways and controllers there are, and the settings of each role."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from understudy.failures import Site
from understudy.settings import Name, NonNegative, Positive, Settings
from understudy.settings.agent import AgentTuning
from understudy.settings.controller import ControllerConfig, ControllerTuning
from understudy.settings.gateway import GatewayConfig, GatewayTuning
from understudy.settings.places import DiskSettings, LogSettings
from understudy.settings.plan import PlanSettings
from understudy.settings.security import AuthSettings
from understudy.settings.worker import WorkerTuning
from understudy.wire.errors import ConfigError


class DeviceConfig(Settings, frozen=True):
    name: Name
    memory_mb: Positive
    cores: NonNegative = 0.0


class NodeConfig(Settings, frozen=True):
    name: Name
    memory_mb: Positive
    site: Site = "default"  # a path, the largest place first: "eu/room-2/rack-7"
    listen: str = ""  # "unix:/path" or "tcp:host:port"; default: a Unix socket in the run directory
    cores: NonNegative = 0.0  # for inference, like the one that profiled the variants; 0: not limited
    devices: tuple[DeviceConfig, ...] = ()  # parts that replicas are placed on, instead of the whole node
    worker_host: str = ""  # set on a cluster of many machines: workers listen on TCP at this address


class ClusterConfig(Settings, frozen=True):
    """CLUSTER.toml. Relative paths are relative to the file."""

    nodes: tuple[NodeConfig, ...]
    name: Name = "understudy"
    data_dir: str = "understudy-data"
    run_dir: str = ""  # sockets; default: <data_dir>/run, or one under /tmp where that path is too long
    artifacts_dir: str = ""  # default: <data_dir>/artifacts
    gateways: tuple[GatewayConfig, ...] = (GatewayConfig(name="g1"),)
    controllers: tuple[ControllerConfig, ...] = (ControllerConfig(),)
    apps: tuple[str, ...] = ()  # manifests deployed by `understudy up`
    auth: AuthSettings | None = None
    gateway: GatewayTuning = GatewayTuning()
    agent: AgentTuning = AgentTuning()
    worker: WorkerTuning = WorkerTuning()
    controller: ControllerTuning = ControllerTuning()
    plan: PlanSettings = PlanSettings()
    disk: DiskSettings = DiskSettings()
    logs: LogSettings = LogSettings()

    def role_dir(self, role: str, name: str) -> Path:
        """State of one process across its restarts."""
        return Path(self.data_dir) / role / name

    def listen_address(self, role: str, name: str, configured: str) -> str:
        return configured or f"unix:{Path(self.run_dir) / f'{role}-{name}.sock'}"

    def node(self, name: str) -> NodeConfig:
        return _named(self.nodes, name, "node")

    def gateway_named(self, name: str) -> GatewayConfig:
        return _named(self.gateways, name, "gateway")

    def controller_named(self, name: str) -> ControllerConfig:
        return _named(self.controllers, name, "controller")

    def agent_address(self, name: str) -> str:
        return self.listen_address("agent", name, self.node(name).listen)

    def controller_addresses(self) -> list[str]:
        return [self.listen_address("controller", c.name, c.listen) for c in self.controllers]


N = TypeVar("N", NodeConfig, GatewayConfig, ControllerConfig)


def _named(items: tuple[N, ...], name: str, what: str) -> N:
    for item in items:
        if item.name == name:
            return item
    known = ", ".join(item.name for item in items)
    raise ConfigError(f"no {what} named {name!r} in the cluster file; it has: {known}")
