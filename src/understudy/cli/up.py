"""`understudy up`: a whole cluster in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import Any

import msgspec

from understudy.adapters.task_groups import ungrouped
from understudy.cli import deploy
from understudy.cli.control import cluster_gateways, gateway_access, gateway_url, segment
from understudy.cli.output import Output
from understudy.cli.packing import pack
from understudy.cli.supervisor import Cluster
from understudy.wire.errors import UnderstudyError

START_TIMEOUT_S = 30.0
EXAMPLE_VALUES_MAX = 64  # larger requests make no readable curl line


def run_up(config_path: Path, output: Output, *, restart: bool) -> None:
    """Until Ctrl-C or SIGTERM. Raises what keeps the cluster from starting, after stopping all of it."""
    cluster = Cluster(config_path)
    for app in cluster.config.apps:
        with pack(Path(app)):
            pass  # a mistake in a manifest is told before anything runs
    with ungrouped(UnderstudyError):
        asyncio.run(_run(cluster, output, restart=restart))


async def _run(cluster: Cluster, output: Output, *, restart: bool) -> None:
    asked_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked_to_stop.set)
    try:
        async with asyncio.TaskGroup() as tasks:
            cluster.start()
            running = [
                tasks.create_task(cluster.watch(output.note, restart=restart)),
                tasks.create_task(_bring_up(cluster, output)),
            ]
            await asked_to_stop.wait()
            for task in running:
                task.cancel()
    finally:
        if asked_to_stop.is_set():
            output.note("stopping")
        await cluster.stop()


async def _bring_up(cluster: Cluster, output: Output) -> None:
    """Wait for the control API, deploy the cluster file's apps, and say where everything is."""
    output.note(f"starting {len(cluster.roles)} processes")
    await cluster.wait_until(lambda views: True, START_TIMEOUT_S, "start")
    progress: contextlib.AbstractContextManager[deploy.Progress] = (
        contextlib.nullcontext(deploy.Silent()) if output.as_json else deploy.Bars(output)
    )
    with progress as told:
        deployments = await _deploy(cluster, told)
    example = await asyncio.to_thread(_example, cluster, [d.app for d in deployments if d.state == "ready"])
    if output.as_json:
        output.data(_document(cluster, deployments))
    else:
        _show(cluster, deployments, example, output)


async def _deploy(cluster: Cluster, progress: deploy.Progress) -> list[deploy.Deployment]:
    current = []
    for app in cluster.config.apps:
        with pack(Path(app)) as package:
            current.append(await asyncio.to_thread(deploy.submit, cluster.control, package, progress))
    while not all(d.finished for d in current):
        await asyncio.sleep(deploy.FOLLOW_INTERVAL_S)
        current = await asyncio.to_thread(deploy.refresh, cluster.control, current, progress)
    return current


def _document(cluster: Cluster, deployments: list[deploy.Deployment]) -> dict[str, Any]:
    config = cluster.config
    return {
        "cluster": config.name,
        "gateways": {g.name: gateway_url(g) for g in config.gateways},
        "controllers": {c.name: f"http://{c.http}" for c in config.controllers},
        "nodes": [n.name for n in config.nodes],
        "deployments": deployments,
        "logs": str(cluster.logs_dir),
    }


def _show(cluster: Cluster, deployments: list[deploy.Deployment], example: str, output: Output) -> None:
    from rich.table import Table
    from rich.text import Text

    config = cluster.config
    table = Table.grid(padding=(0, 2))
    for gateway in config.gateways:
        table.add_row(f"  gateway {gateway.name}", gateway_url(gateway))
    for controller in config.controllers:
        table.add_row(f"  controller {controller.name}", f"http://{controller.http}")
    table.add_row("  logs", str(cluster.logs_dir))
    output.show(Text.assemble((config.name, "bold"), f" is up: {len(config.nodes)} nodes"), table)
    for deployment in deployments:
        output.show(Text(f"  {deploy.sentence(deployment)}"))
    if example:
        output.show(Text("Try:"))
        output.stdout.print(f"  {example}", markup=False, soft_wrap=True)
    output.show(Text("Ctrl-C stops everything."))


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
