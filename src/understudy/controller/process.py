"""The controller's process: starts, listens, stops. Entry point: `run_controller`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from pathlib import Path

import structlog
import uvloop

from understudy.adapters import logs
from understudy.adapters.audit import AuditLog
from understudy.adapters.claims import Claim, claim
from understudy.adapters.crash_policy import CrashPolicy
from understudy.adapters.links import FrameLink, listen
from understudy.adapters.operator_tokens import announce, operator_token
from understudy.adapters.sqlite_store import SqliteStore
from understudy.adapters.store import Store
from understudy.adapters.task_groups import ungrouped
from understudy.controller.api import ApiServer, build_api
from understudy.controller.doorkeeper import Doorkeeper
from understudy.controller.shell import Controller
from understudy.core.controller.stored import META, Memory, recall
from understudy.core.webpages import Names
from understudy.settings.cluster import ClusterConfig
from understudy.settings.controller import ControllerConfig
from understudy.wire.errors import ConfigError, UnderstudyError

STORE_FILE = "store.sqlite"
HTTP_BACKLOG = 128

log = structlog.get_logger()


class _Stopping(Exception):
    """Asked to stop."""


def run_controller(config: ClusterConfig, name: str) -> None:
    """Run until SIGTERM or SIGINT. Raises `ConfigError` for a start that can't succeed.

    Raises CONFLICT when another controller takes the store over: two must not decide.
    """
    logs.configure("controller", name)
    me = config.controller_named(name)
    held = claim(config.role_dir("controller", name), f"controller {name!r} runs already")
    with contextlib.closing(held), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(config, me, held))


async def _run(config: ClusterConfig, me: ControllerConfig, held: Claim) -> None:
    stopping = asyncio.Event()
    folder = config.role_dir("controller", me.name)
    loop = asyncio.get_running_loop()
    # What agents and gateways say changes the machine: a step half done belongs to all.
    CrashPolicy(shared=(FrameLink,)).watch(loop)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, logs.reopen)
    with _listening_socket(me.http) as http:
        store = SqliteStore(folder / STORE_FILE, config.controller.events_max)
        try:
            with ungrouped(UnderstudyError):
                await _serve(config, me, store, http, stopping)
        finally:
            held.leave()
            await store.close()


async def _serve(
    config: ClusterConfig, me: ControllerConfig, store: Store, http: socket.socket, stopping: asyncio.Event
) -> None:
    memory, meta_revision = await _recall(store)
    token = operator_token(Path(config.data_dir))
    announce(token, [me.http])
    try:
        async with asyncio.TaskGroup() as tasks:
            controller = Controller(config, me.name, store, memory, meta_revision, tasks)
            audit = AuditLog(config.role_dir("controller", me.name), config.logs)
            guarded = Doorkeeper(
                build_api(controller, config, audit), token, Names([me.http], me.hosts), audit
            )
            api = ApiServer(guarded, http)
            frames = await listen(config.listen_address("controller", me.name, me.listen), controller.accept)
            try:
                tasks.create_task(controller.run())
                tasks.create_task(api.run())
                tasks.create_task(frames.keep(lambda what: log.warning("socket.restored", message=what)))
                log.info("controller.listening", http=me.http)
                await stopping.wait()
                await api.stop()
            finally:
                frames.close()
                controller.disconnect()
            raise _Stopping
    except* _Stopping:
        pass  # the way to cancel everything in a TaskGroup
    log.info("controller.stopped")
    await controller.bookkeeper.flush()


async def _recall(store: Store) -> tuple[Memory, int]:
    """What is stored, and the revision of `meta`.

    Of a store that can't be used, nothing: gateways and agents tell what they hold, and what is to be kept
    waits until the store can be used. Should it turn out then to hold something, we start anew.
    """
    try:
        entries = await store.range("")
    except UnderstudyError as error:
        log.error("store.unusable", reason=error.message)
        return Memory(), 0
    memory = recall((entry.key, entry.value) for entry in entries)
    return memory, next((entry.revision for entry in entries if entry.key == META), 0)


def _listening_socket(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host.strip("[]"), int(port)), family=family, backlog=HTTP_BACKLOG)
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(f"controllers.http: {address}: can't listen: {error}") from error
