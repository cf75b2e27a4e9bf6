"""One role in the foreground: what `understudy controller|gateway|agent NAME` runs."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from understudy.config import ClusterConfig, load_cluster

RoleName = Literal["controller", "gateway", "agent"]
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run_role(role: RoleName, name: str, cluster: Path, parent_pid: int | None) -> None:
    """Run until SIGTERM or SIGINT. With `parent_pid`, drain and stop also when that process dies."""
    if parent_pid is not None:
        follow_parent(parent_pid)
    config = load_cluster(cluster)
    _run_of(role)(config, name)


def follow_parent(parent_pid: int) -> None:
    """Have the kernel send SIGTERM to this process when its parent's starting thread ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    if os.getppid() != parent_pid:
        raise SystemExit(0)  # it died before the kernel knew that we care


def _run_of(role: RoleName) -> Callable[[ClusterConfig, str], None]:
    # Each role imports only what it needs, so that it starts quickly and stays small.
    if role == "controller":
        from understudy.controller.process import run_controller

        return run_controller
    if role == "gateway":
        from understudy.gateway.process import run_gateway

        return run_gateway
    from understudy.agent.process import run_agent

    return run_agent
