"""One role in the foreground: what `understudy controller|gateway|agent NAME` runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import structlog

from understudy.adapters import logs
from understudy.adapters.claims import check_owner
from understudy.adapters.libraries import first_outdated
from understudy.adapters.parents import follow_parent, have_init
from understudy.adapters.task_groups import ungrouped
from understudy.config import load_cluster
from understudy.settings.cluster import ClusterConfig
from understudy.wire.errors import Code, CommandError

RoleName = Literal["controller", "gateway", "agent"]


def run_role(role: RoleName, name: str, cluster: Path, parent_pid: int | None) -> None:
    """Run until SIGTERM or SIGINT. With `parent_pid`, drain and stop also when that process dies.

    It may be older than the cluster file, in the middle of an upgrade: fields it doesn't know stop nobody.
    """
    os.umask(0o077)  # what we write is for our user alone
    have_init()
    if parent_pid is not None:
        follow_parent(parent_pid)
    unknown: list[str] = []
    config = load_cluster(cluster, unknown)
    if unknown:
        logs.configure(role, name)
        structlog.get_logger().warning("settings.ignored", path=str(cluster), fields=unknown)
    named = {"controller": config.controller_named, "gateway": config.gateway_named, "agent": config.node}
    named[role](name)  # a wrong name leaves no trace
    check_libraries(config, role)
    check_owner(Path(config.data_dir), config.name)
    with ungrouped(OSError):
        _run_of(role)(config, name)


def check_libraries(config: ClusterConfig, *roles: RoleName) -> None:
    """Raises `CommandError` if one that these roles use is too old. Takes milliseconds."""
    extras = {
        "controller": "controller" in roles,
        "onnx": "agent" in roles,
        "auth": "gateway" in roles and config.auth is not None,
        "grpc": "gateway" in roles and any(gateway.grpc for gateway in config.gateways),
    }
    if outdated := first_outdated(*(extra for extra, used in extras.items() if used)):
        name, found, least = outdated
        message = f"{name} is {found} here, and Understudy needs {least} or newer"
        raise CommandError(Code.CONFIG, message, f"{sys.executable} -m pip install '{name}>={least}'")


def _run_of(role: RoleName) -> Callable[[ClusterConfig, str], None]:
    # Each role imports only what it needs, so that it starts quickly and stays small.
    if role == "controller":
        from understudy.controller.process import run_controller

        return run_controller
    if role == "gateway":
        from understudy.gateway.host import run_gateway

        return run_gateway
    from understudy.agent.process import run_agent

    return run_agent
