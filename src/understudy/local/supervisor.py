"""A whole cluster as real processes on this machine.

Lives here: starting, signalling, restarting and ending roles, and waiting for what they do. A node is a
process group (agent, zygote, workers), so that losing a node is one signal. Used by `understudy up`, by the
demo and by the integration tests.

What signals is synchronous and returns at once; what waits is a coroutine. Roles end with the thread that
started them, so everything here is called from the main thread.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from understudy.adapters.claims import Claim, check_owner, claim
from understudy.adapters.control import Servers, cluster_controllers, cluster_gateways, gateway_access
from understudy.config import load_cluster
from understudy.core.views import AppHealth, ReplicaView, StatusView, from_controller, from_gateway
from understudy.local.processes import KILL_TIMEOUT_S, RoleProcess
from understudy.wire.errors import Code, CommandError, UnderstudyError
from understudy.wire.statuses import STATUSES

POLL_S = 0.05
WATCH_INTERVAL_S = 0.1
STATUS_TIMEOUT_S = 2.0
STOP_GRACE_S = 2.0  # beyond the time that roles have for draining; then they are killed
UP_LOCK = "up.lock"


class Cluster:
    """The processes of a cluster file. Nothing is started before `start` or one of its siblings."""

    def __init__(self, config_path: Path) -> None:
        """Raises `ConfigError` when the file is wrong."""
        self.config_path = config_path.resolve()
        self.config = load_cluster(config_path)
        source = f"from {config_path}"
        self.control = cluster_controllers(self.config, source=source)
        # The same servers, for who asks again and again and waits for no answer long.
        self.polled_control = cluster_controllers(self.config, source=source, timeout_s=STATUS_TIMEOUT_S)
        self.logs_dir = Path(self.config.data_dir) / "logs"
        self._claim: Claim | None = None
        names = [("controller", c.name) for c in self.config.controllers]
        names += [("gateway", g.name) for g in self.config.gateways]
        names += [("agent", n.name) for n in self.config.nodes]
        self.roles = {
            (role, name): RoleProcess(
                role, name, self._argv(role, name), self.logs_dir / f"{role}-{name}.log", self.config.logs
            )
            for role, name in names
        }

    def _argv(self, role: str, name: str) -> list[str]:
        whose = ["--cluster", str(self.config_path), "--parent", str(os.getpid())]
        return [sys.executable, "-P", "-m", "understudy", role, name, *whose]

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # starting, signalling: at once

    def start(self) -> None:
        """Start every role. They find each other in any order.

        Raises `ConfigError` if a cluster runs in the same data directory, or it is another one's; it isn't
        touched then.
        """
        check_owner(Path(self.config.data_dir), self.config.name)
        if self._claim is None:
            self._claim = claim(
                Path(self.config.data_dir), f"cluster {self.config.name!r} runs already", UP_LOCK
            )
        for role in self.roles.values():
            role.start()

    def start_node(self, name: str) -> None:
        """Start the agent of a node that is down, or whose agent alone was killed."""
        self.roles["agent", name].start()

    def kill_node(self, name: str) -> None:
        """Agent, zygote and workers of a node, all at once."""
        self._end("agent", name, whole_group=True)

    def freeze_node(self, name: str) -> None:
        self.roles["agent", name].send_group(signal.SIGSTOP)

    def thaw_node(self, name: str) -> None:
        self.roles["agent", name].send_group(signal.SIGCONT)

    def kill_agent(self, name: str) -> None:
        """The agent alone; its workers live on."""
        self._end("agent", name, whole_group=False)

    def start_gateway(self, name: str) -> None:
        self.roles["gateway", name].start()

    def kill_gateway(self, name: str) -> None:
        self._end("gateway", name, whole_group=True)

    def start_controller(self, name: str) -> None:
        self.roles["controller", name].start()

    def kill_controller(self, name: str) -> None:
        self._end("controller", name, whole_group=True)

    def _end(self, role: str, name: str, *, whole_group: bool) -> None:
        process = self.roles[role, name]
        process.wanted = False
        if whole_group:
            process.send_group(signal.SIGKILL)
        else:
            process.send(signal.SIGKILL)

    def pids(self) -> list[int]:
        """Every live process of the cluster."""
        return sorted(pid for role in self.roles.values() for pid in role.pids())

    # asking and waiting

    async def status(self) -> StatusView:
        """The controller's view. Raises UNAVAILABLE or TIMEOUT."""
        return from_controller(await _ask(self.polled_control, "/v1/status"), self.control.urls[0])

    async def gateway_status(self, name: str) -> StatusView:
        """One gateway's own view, which needs no controller."""
        servers = self._gateway_servers([name])
        return from_gateway(await _ask(servers, "/understudy/status"), servers.urls[0])

    async def _visible_status(self, name: str) -> list[StatusView]:
        """A gateway's view, if it lets us look: UNDERSTUDY_API_KEY and UNDERSTUDY_CA may be missing."""
        try:
            return [await self.gateway_status(name)]
        except UnderstudyError as error:
            if error.code in (Code.UNAUTHENTICATED, Code.FORBIDDEN):
                return []
            raise

    async def workers(self, app: str) -> list[ReplicaView]:
        """An app's replicas with their processes, best variant first, as the gateways see them."""
        servers = self._gateway_servers([gateway.name for gateway in self.config.gateways])
        view = from_gateway(await _ask(servers, "/understudy/status"), servers.urls[0])
        return next((a.replicas for a in view.apps if a.name == app), [])

    def _gateway_servers(self, names: Iterable[str]) -> Servers:
        return cluster_gateways(
            self.config,
            source=f"from {self.config_path}",
            access=gateway_access(),
            names=tuple(names),
            timeout_s=STATUS_TIMEOUT_S,
        )

    async def wait_ready(self, apps: Collection[str], timeout_s: float) -> None:
        """Until the controller and every running gateway serve `apps` by their full-size variant.

        Raises TIMEOUT.
        """
        await self.wait_until(
            lambda views: all(_states(view, apps) <= {AppHealth.OK} for view in views),
            timeout_s,
            f"readiness of {', '.join(apps)}",
        )

    async def wait_until(
        self, holds: Callable[[list[StatusView]], bool], timeout_s: float, what: str, *, patient: bool = False
    ) -> None:
        """Poll until `holds` for the views of the controller and of every running gateway.

        Raises TIMEOUT naming `what`, CONFLICT when another cluster has the controller's address, or CONFIG,
        unless `patient`, when a role can't start at all.
        """
        deadline_s = time.monotonic() + timeout_s
        latest = ""
        while time.monotonic() < deadline_s:
            if not patient:
                self._check_starts()
            try:
                views = [await self.status()]
                await self._check_own_controller()
                running = [g.name for g in self.config.gateways if self.roles["gateway", g.name].pid]
                for name in running:
                    views += await self._visible_status(name)
            except UnderstudyError as error:
                if error.code is Code.CONFLICT:
                    raise
                latest = str(error)
            else:
                if holds(views):
                    return
                latest = f"seen last: {msgspec.json.encode(views).decode()}"
            await asyncio.sleep(POLL_S)
        hint = f"logs are in {self.logs_dir}"
        raise CommandError(Code.TIMEOUT, f"{what}: not within {timeout_s:g} s; {latest}", hint)

    async def _check_own_controller(self) -> None:
        if not await self.has_own_controller():
            where = ", ".join(self.control.urls)
            raise CommandError(
                Code.UNAVAILABLE, f"what answers at {where} is none of this cluster's processes"
            )

    async def has_own_controller(self) -> bool:
        """Whether a process of ours answers as the controller: others may have its address, and our name."""
        health: object = await _ask(self.polled_control, "/v1/health")
        pid = health.get("pid") if isinstance(health, dict) else None
        return any(pid in process.pids() for (role, _), process in self.roles.items() if role == "controller")

    def _check_starts(self) -> None:
        for role in self.roles.values():
            if role.wanted and _cannot_start(role):
                raise CommandError(
                    Code.CONFIG, f"{role} can't start: {_last_error(role)}", f"its log is {role.log_path}"
                )

    def troubles(self) -> dict[str, str | None]:
        """Of each role why it doesn't run as it should; "" while nobody can say, None if it does."""
        found: dict[str, str | None] = {}
        for role in self.roles.values():
            if not role.pid and role.wanted and _cannot_start(role):
                found[str(role)] = f"{role} can't start: {_last_error(role)}; log: {role.log_path}"
            elif not role.pid and role.wanted and role.restarts_in_a_row > 1:
                found[str(role)] = f"{role} {_ending(role)} again and again; log: {role.log_path}"
            else:
                found[str(role)] = None if role.is_settled else ""
        return found

    async def stop(self, *, now: bool = False) -> None:
        """End everything. No process is left, nor its entry.

        Gateways drain first, for which they need the nodes, then the others; each as long as it is configured
        to. `now`: nothing is waited for.
        """
        if self._claim is not None:
            self._claim.leave()
        for role in self.roles.values():
            role.wanted = False
        if not now:
            await self._drain("gateway", timeout_s=self.config.gateway.http.drain_timeout_s)
            await self._drain("agent", "controller", timeout_s=self.config.agent.drain_timeout_ms / 1000)
        for role in self.roles.values():
            if role.pids():
                role.send_group(signal.SIGKILL)
        await _until(
            lambda: not any(role.pid for role in self.roles.values()) and not self.pids(), KILL_TIMEOUT_S
        )
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    async def _drain(self, *kinds: str, timeout_s: float) -> None:
        roles = [role for role in self.roles.values() if role.role in kinds]
        for role in roles:
            if role.pids():
                role.send_group(signal.SIGCONT)
                role.send(signal.SIGTERM)
        await _until(lambda: not any(role.pid for role in roles), timeout_s + STOP_GRACE_S)

    def reload(self) -> None:
        """Have every role read anew what it can."""
        for role in self.roles.values():
            if role.pid:
                role.send(signal.SIGHUP)

    async def watch(self, tell: Callable[[str], None], *, restart: bool = True) -> None:
        """Tell of wanted roles that died and, unless told otherwise, start them again with back-off.

        One that refused its configuration too: a port may become free, a file may be mended. `troubles` tells
        of those. Ends when cancelled.
        """
        due_s: dict[RoleProcess, float] = {}
        while True:
            now_s = time.monotonic()
            for role in self.roles.values():
                role.rotate_log()
                if not role.wanted or role.pid:
                    continue
                if not restart:
                    role.wanted = False
                    tell(f"{role} {_ending(role)}")
                elif role not in due_s:
                    due_s[role] = now_s + role.restart_delay_s()
                    if not _cannot_start(role):
                        tell(f"{role} {_ending(role)}; starting it again")
                elif now_s >= due_s[role]:
                    del due_s[role]
                    role.start()
            await asyncio.sleep(WATCH_INTERVAL_S)


def _states(view: StatusView, apps: Collection[str]) -> set[str]:
    found = {app.name: app.state for app in view.apps}
    return {found.get(app, AppHealth.DOWN) for app in apps}


def _cannot_start(role: RoleProcess) -> bool:
    """It refused its configuration or address."""
    return role.exit_status == STATUSES[Code.CONFIG].exit


def _last_error(role: RoleProcess) -> str:
    errors = [line for line in role.log_tail().splitlines() if line.startswith("error: ")]
    return errors[-1].removeprefix("error: ") if errors else "it gave no reason"


def _ending(role: RoleProcess) -> str:
    status = role.exit_status
    if status is None or status >= 0:
        return f"ended with status {status}"
    return f"was ended by {signal.Signals(-status).name}"


async def _ask(servers: Servers, path: str) -> dict[str, Any]:
    document: dict[str, Any] = await asyncio.to_thread(servers.get, path)
    return document


async def _until(holds: Callable[[], bool], timeout_s: float) -> None:
    """Return when `holds`, or when `timeout_s` have passed."""
    deadline_s = time.monotonic() + timeout_s
    while not holds() and time.monotonic() < deadline_s:  # noqa: ASYNC110 - nobody tells when a group is empty
        await asyncio.sleep(POLL_S)
