"""`understudy up`: a whole cluster in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from understudy.adapters.control import cluster_gateways, gateway_access, gateway_url, segment
from understudy.adapters.logs import be_patient
from understudy.adapters.parents import have_init
from understudy.adapters.sandbox.walls import Tier
from understudy.adapters.task_groups import ungrouped
from understudy.cli import deploy
from understudy.cli.output import Output
from understudy.cli.packing import Package, pack
from understudy.cli.problems import KnownProblems
from understudy.cli.roles import check_libraries
from understudy.core.lifecycle import DeploymentPhase
from understudy.core.views import from_controller
from understudy.local.supervisor import Cluster
from understudy.wire.errors import Code, UnderstudyError

START_TIMEOUT_S = 30.0  # of a controller, before it is told that it takes long
SUBMIT_RETRY_S = 2.0
NODES_TIMEOUT_S = 3.0  # of nodes, to be told of
EXAMPLE_VALUES_MAX = 64  # larger requests make no readable curl line
# A manifest is tried again after these: nothing is wrong with it.
LATER = frozenset({Code.UNAVAILABLE, Code.TIMEOUT, Code.LINK_LOST, Code.BUSY, Code.STORE_UNAVAILABLE})


def run_up(config_path: Path, output: Output, *, restart: bool) -> bool:
    """Until Ctrl-C or SIGTERM. False if there is something then that could not be run or deployed.

    Raises what is wrong with the cluster file as a whole.
    """
    have_init()
    be_patient()
    cluster = Cluster(config_path)
    check_libraries(cluster.config, "controller", "gateway", "agent")
    problems = KnownProblems(output)
    with ungrouped(UnderstudyError), ungrouped(OSError):
        asyncio.run(_run(cluster, output, problems, restart=restart))
    return not problems.by_source


async def _run(cluster: Cluster, output: Output, problems: KnownProblems, *, restart: bool) -> None:
    asked_to_stop, asked_again = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        (asked_again if asked_to_stop.is_set() else asked_to_stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    # A terminal that is closed takes its cluster along; without one it is how logrotate asks to read anew.
    loop.add_signal_handler(signal.SIGHUP, asked_to_stop.set if sys.stdin.isatty() else cluster.reload)
    try:
        async with asyncio.TaskGroup() as tasks:
            await _check_addresses(cluster)
            cluster.start()
            running = [
                tasks.create_task(cluster.watch(output.note, restart=restart)),
                tasks.create_task(problems.watch(cluster)),
                tasks.create_task(_bring_up(cluster, output, problems)),
            ]
            await asked_to_stop.wait()
            for task in running:
                task.cancel()
    finally:
        if asked_to_stop.is_set():
            output.note("stopping: what is in flight is answered first; Ctrl-C again ends it at once")
        await _stop(cluster, asked_again)


async def _check_addresses(cluster: Cluster) -> None:
    """Raises CONFLICT where another cluster has the controller's address: it would be told what is ours."""
    try:
        await asyncio.to_thread(cluster.polled_control.get, "/v1/health")
    except UnderstudyError as error:
        if error.code is Code.CONFLICT:
            raise


async def _stop(cluster: Cluster, at_once: asyncio.Event) -> None:
    async with asyncio.TaskGroup() as tasks:
        draining = tasks.create_task(cluster.stop())
        asked = tasks.create_task(at_once.wait())
        await asyncio.wait((draining, asked), return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
        asked.cancel()
    await cluster.stop(now=True)


async def _bring_up(cluster: Cluster, output: Output, problems: KnownProblems) -> None:
    """Deploy what changed of the cluster file's apps, and say where everything is."""
    output.note(f"starting {len(cluster.roles)} processes")
    with contextlib.ExitStack() as opened:
        packages = packed(cluster.config.apps, opened, problems)
        await _controller(cluster, output)
        progress: contextlib.AbstractContextManager[deploy.DeployProgress] = (
            contextlib.nullcontext(deploy.Silent()) if output.as_json else deploy.Bars(output)
        )
        with progress as told:
            deployments = await _deploy(cluster, packages, told, problems)
    answering = [
        d.app for d in deployments if d.version and d.state in (DeploymentPhase.READY, DeploymentPhase.KEPT)
    ]
    example = await asyncio.to_thread(_example, cluster, answering)
    if output.as_json:
        output.data(_document(cluster, deployments, problems))
    else:
        _show(cluster, deployments, example, await asyncio.to_thread(_sandboxes, cluster), output)


def packed(apps: Iterable[str], opened: contextlib.ExitStack, problems: KnownProblems) -> list[Package]:
    """What can be deployed. A mistake in a manifest is told before anything else happens."""
    by_name: dict[str, Package] = {}
    for app in apps:
        try:
            package = opened.enter_context(pack(Path(app)))
        except (UnderstudyError, OSError) as error:
            problems.add(app, f"{error}; what is deployed of it stays")
            continue
        first = by_name.setdefault(package.name, package)
        if first is not package:
            problems.add(app, f"{app}: name: {package.name!r} is that of {first.path} too; it isn't deployed")
    return list(by_name.values())


async def _controller(cluster: Cluster, output: Output) -> None:
    """Return when one answers, and every gateway that runs."""
    while True:
        try:
            return await cluster.wait_until(lambda views: True, START_TIMEOUT_S, "start", patient=True)
        except UnderstudyError as error:
            if error.code is not Code.TIMEOUT:
                raise
            output.note(f"{error.message}; what runs serves meanwhile")


async def _deploy(
    cluster: Cluster, packages: list[Package], progress: deploy.DeployProgress, problems: KnownProblems
) -> list[deploy.DeploymentState]:
    current = []
    for package in packages:
        begun = await _submit(cluster, package, progress, problems)
        if begun is not None:
            current.append(begun)
    while not all(d.finished for d in current):
        await asyncio.sleep(deploy.FOLLOW_INTERVAL_S)
        current = [await asyncio.to_thread(_refresh, cluster, d, progress) for d in current]
    for deployment in current:
        if deployment.state == DeploymentPhase.FAILED:
            problems.add(deployment.app, deploy.sentence(deployment))
    return current


async def _submit(
    cluster: Cluster, package: Package, progress: deploy.DeployProgress, problems: KnownProblems
) -> deploy.DeploymentState | None:
    while True:
        try:
            begun = await asyncio.to_thread(
                deploy.submit, cluster.control, package, progress, if_changed=True
            )
        except UnderstudyError as error:
            problems.add(package.path, f"{package.path}: {error}")
            if error.code not in LATER:
                return None
            await asyncio.sleep(SUBMIT_RETRY_S)
        else:
            problems.mended(package.path)
            return begun


def _refresh(
    cluster: Cluster, deployment: deploy.DeploymentState, progress: deploy.DeployProgress
) -> deploy.DeploymentState:
    """A controller that was started again may have forgotten it."""
    try:
        return deploy.refresh(cluster.control, [deployment], progress)[0]
    except UnderstudyError as error:
        return msgspec.structs.replace(deployment, state=DeploymentPhase.FAILED, message=error.message)


def _document(
    cluster: Cluster, deployments: list[deploy.DeploymentState], problems: KnownProblems
) -> dict[str, Any]:
    config = cluster.config
    return {
        "cluster": config.name,
        "gateways": {g.name: gateway_url(g) for g in config.gateways},
        "controllers": {c.name: f"http://{c.http}" for c in config.controllers},
        "nodes": [n.name for n in config.nodes],
        "deployments": deployments,
        "problems": problems.by_source,
        "logs": str(cluster.logs_dir),
    }


def _show(
    cluster: Cluster,
    deployments: list[deploy.DeploymentState],
    example: str,
    sandboxes: dict[str, list[str]],
    output: Output,
) -> None:
    from rich.table import Table
    from rich.text import Text

    config = cluster.config
    table = Table.grid(padding=(0, 2))
    for gateway in config.gateways:
        table.add_row(f"  gateway {gateway.name}", gateway_url(gateway))
    for controller in config.controllers:
        table.add_row(f"  controller {controller.name}", f"http://{controller.http}")
    for sandbox, nodes in sandboxes.items():
        where = "" if len(sandboxes) == 1 else f" on {', '.join(nodes)}"
        tier = sandbox.partition(" ")[0]
        meaning = ": they see their own files, and no network" if tier == Tier.NAMESPACES else ""
        table.add_row(f"  models' sandbox{where}", f"{sandbox}{meaning}")
    table.add_row("  logs", str(cluster.logs_dir))
    came, count = sum(map(len, sandboxes.values())), len(config.nodes)
    size = f"{count} node{'s' if count > 1 else ''}"
    is_up = f" is up: {size}" if came == count else f" is up, but only {came} of its {size} came so far"
    output.show(Text.assemble((config.name, "bold"), is_up), table)
    for deployment in deployments:
        output.show(Text(f"  {deploy.sentence(deployment)}"))
        deploy.warn(deployment, output)
    if example:
        output.show(Text("Try:"))
        output.stdout.print(f"  {example}", markup=False, soft_wrap=True)
    output.show(Text("Ctrl-C stops everything."))


def _sandboxes(cluster: Cluster) -> dict[str, list[str]]:
    """Nodes by what surrounds their models; those that don't come are left out."""
    deadline_s = time.monotonic() + NODES_TIMEOUT_S
    while True:
        found: dict[str, list[str]] = {}
        with contextlib.suppress(UnderstudyError):
            for node in from_controller(cluster.polled_control.get("/v1/status"), "").nodes:
                if node.sandbox:
                    found.setdefault(node.sandbox, []).append(node.name)
        known = sum(map(len, found.values()))
        if known == len(cluster.config.nodes) or time.monotonic() > deadline_s:
            return found
        time.sleep(0.05)


def _example(cluster: Cluster, apps: list[str]) -> str:
    """A curl line that works now, with a request of zeros; without it where requests are too large."""
    if not apps:
        return ""
    gateways = cluster_gateways(cluster.config, source=f"from {cluster.config_path}", access=gateway_access())
    model = f"/v2/models/{segment(apps[0])}"
    try:
        inputs = gateways.get(model).get("inputs", [])
    except UnderstudyError:
        return ""  # ready a moment ago; `understudy status` tells what happened
    url = f"{gateways.urls[0]}{model}"
    if gateways.access.ca:
        url = f'--cacert "$UNDERSTUDY_CA" {url}'
    if gateways.access.headers:  # the key itself belongs on no screen
        url = f'-H "X-API-Key: $UNDERSTUDY_API_KEY" {url}'
    zeros = [_zeros(tensor) for tensor in inputs]
    if not zeros or sum(len(tensor["data"]) for tensor in zeros) > EXAMPLE_VALUES_MAX:
        return f"curl -s {url}"
    return f"curl -s {url}/infer -d '{msgspec.json.encode({'inputs': zeros}).decode()}'"


def _zeros(tensor: dict[str, Any]) -> dict[str, Any]:
    shape = [max(length, 1) for length in tensor["shape"]]
    count = 1
    for length in shape:
        count *= length
    zero: Any = {"BOOL": False, "BYTES": ""}.get(tensor["datatype"], 0)
    return {"name": tensor["name"], "datatype": tensor["datatype"], "shape": shape, "data": [zero] * count}
