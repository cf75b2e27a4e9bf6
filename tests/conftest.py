"""What holds for every test: skips fail in CI, and decisions can't reach the outside."""

from __future__ import annotations

import ast
import functools
import os
import socket
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings
from tests.busy_machine import BusyMachine

IN_CI = os.environ.get("CI", "").lower() in {"1", "true"}

# No deadline: a shared machine's pauses are no property of the code. The blob replays a failure elsewhere.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, print_blob=True)
settings.load_profile("ci" if IN_CI else "local")

# A test module that uses nothing above these is a test of decisions, unless it starts a cluster.
PURE_PACKAGES = (
    "understudy.wire",
    "understudy.core",
    "understudy.config",
    "understudy.settings",
    "understudy.invariants",
)
CLUSTER_LEVELS = ("integration", "security", "e2e")


# Where clusters tell commands of this user their tokens: none of the user's own.
STATE_HOME = tempfile.TemporaryDirectory(prefix="understudy-state-")
os.environ["XDG_STATE_HOME"] = STATE_HOME.name


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(BusyMachine(CLUSTER_LEVELS, may_skip=not IN_CI))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and in CI nothing may be: {_reason(report.longrepr)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if IN_CI and report.outcome == "skipped":
        report.outcome = "failed"
        report.longrepr = f"skipped, and in CI nothing may be: {_reason(report.longrepr)}"
    return report


def _reason(longrepr: object) -> str:
    return str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)


@functools.cache
def imports_only_decisions(path: Path) -> bool:
    imported: list[str] = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            imported += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
    ours = [name for name in imported if name.startswith("understudy.")]
    return bool(ours) and all(name.startswith(PURE_PACKAGES) for name in ours)


@pytest.fixture(autouse=True, scope="module")
def outside_is_closed(request: pytest.FixtureRequest) -> Iterator[None]:
    """In modules that test decisions only, sockets and processes raise: a decision asks nobody."""
    if request.path.parent.name in CLUSTER_LEVELS or not imports_only_decisions(request.path):
        yield
        return

    def refuse(*_args: object, **_kwargs: object) -> NoReturn:
        pytest.fail("a decision reached for a socket or a process")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "__init__", refuse)
        patch.setattr(subprocess.Popen, "__init__", refuse)
        patch.setattr(os, "fork", refuse)
        yield
