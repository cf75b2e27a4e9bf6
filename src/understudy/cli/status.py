"""`understudy status`: one screen that tells whether everything answers, and what would happen if not."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.text import Text

from understudy.adapters.control import Servers
from understudy.cli.output import Output
from understudy.cli.tables import name, one_line, shortened, table
from understudy.core.lifecycle import NodePhase
from understudy.core.views import AppHealth, AppView, NodeView, StatusView, from_controller, from_gateway
from understudy.wire.errors import Code, CommandError, UnderstudyError
from understudy.wire.records import ONE_AT_A_TIME

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

WATCH_INTERVAL_S = 0.5
STYLES: dict[str, str] = {
    AppHealth.OK: "green",
    AppHealth.DEGRADED: "yellow",
    AppHealth.FAILING: "bold red",
    AppHealth.DOWN: "bold red",
    NodePhase.READY: "green",
    NodePhase.DEAD: "bold red",
}


def fetch(control: Servers, fallback: Servers) -> StatusView:
    """The controller's view; a gateway's own when no controller answers. Raises UNAVAILABLE for neither."""
    try:
        return from_controller(control.get("/v1/status"), ", ".join(control.urls))
    except UnderstudyError as error:
        if error.code not in (Code.UNAVAILABLE, Code.TIMEOUT):
            raise
        absent = error
    try:
        return from_gateway(fallback.get("/understudy/status"), ", ".join(fallback.urls))
    except UnderstudyError as error:
        if error.code in (Code.UNAUTHENTICATED, Code.FORBIDDEN):
            raise  # somebody does answer
        hint = absent.hint if isinstance(absent, CommandError) else ""
        raise CommandError(absent.code, f"{absent.message}; {error.message}", hint) from error


def run_status(control: Servers, fallback: Servers, output: Output) -> bool:
    """Show it once. False if an app isn't served in full, fails its users, or there is no gateway."""
    view = fetch(control, fallback)
    if output.as_json:
        output.data(view)
    else:
        output.show(render(view))
    return view.met


def run_watch(control: Servers, fallback: Servers, output: Output) -> None:
    """Show it again and again until Ctrl-C; with --json, one line each time."""
    with contextlib.suppress(KeyboardInterrupt):
        if output.as_json:
            while True:
                output.data(fetch(control, fallback), lines=True)
                time.sleep(WATCH_INTERVAL_S)
        with Live(console=output.stdout, auto_refresh=False, screen=output.stdout.is_terminal) as live:
            while True:
                live.update(_current(control, fallback), refresh=True)
                time.sleep(WATCH_INTERVAL_S)


def _current(control: Servers, fallback: Servers) -> RenderableType:
    try:
        return render(fetch(control, fallback))
    except UnderstudyError as error:
        return Text(error.message, style="bold red")  # it may come back: keep watching


def render(view: StatusView) -> RenderableType:
    parts: list[RenderableType] = [_head(view)]
    if view.source == "gateway":
        note = "No controller answers: this is what the gateway sees. It serves on without one."
        parts.append(Text(note, style="yellow"))
    nothing = "No apps; add one with `understudy deploy`."
    if not view.has_table:
        nothing = "The gateway has no route table yet: it knows of no app, and answers 503."
    parts += [Text(), _apps(view.apps) if view.apps else Text(nothing)]
    parts += [Text(), _nodes(view.nodes)]
    remarks = _remarks(view)
    if remarks:
        parts += [Text(), *(Text.assemble(("! ", "bold yellow"), one_line(remark)) for remark in remarks)]
    return Group(*parts)


def _head(view: StatusView) -> Text:
    head = Text.assemble((view.cluster or "cluster", "bold"), f"  revision {view.revision}")
    for state in AppHealth:
        number = sum(app.state == state for app in view.apps)
        if number:
            head.append(f"  {number} {state}", style=STYLES[state])
    gateways = sum(gateway.connected for gateway in view.gateways)
    if view.source == "controller":
        head.append(f"  led by {view.leader}, {gateways} gateway{'s' if gateways != 1 else ''}")
    return head


def _remarks(view: StatusView) -> list[str]:
    """What a person should know beyond the tables."""
    remarks = [f"{app.name}: {app.reason}" for app in view.apps if app.reason]
    remarks += [f"{node.name}: {node.reason}" for node in view.nodes if node.reason]
    remarks += [
        f"{app.name}/{variant}: {sentence}"
        for app in view.apps
        for variant, sentence in app.batching.items()
        if sentence.startswith(ONE_AT_A_TIME)
    ]
    remarks += [quarantine.sentence for quarantine in view.quarantines]
    return remarks + view.warnings


def _apps(apps: list[AppView]) -> Table:
    numbers = ("Proof", "p50 ms", "p99 ms")
    made = table(("App", "Served by"), ("State", "Protected", "Criticality", *numbers), right=numbers)
    for app in apps:
        made.add_row(
            name(app.name),
            shortened(_serving(app)),
            Text(app.state, style=STYLES[app.state]),
            _protection(app.protection),
            app.criticality,
            _age(app.proven_ago_s),
            _number(app.p50_ms, 1),
            _number(app.p99_ms, 1),
        )
    return made


def _serving(app: AppView) -> Text:
    if app.serving is None:
        return Text("nobody", style="bold red")
    if app.serving == app.full_size:
        return Text(app.serving)
    return Text.assemble(app.serving, (f" (not {app.full_size})", "yellow"))


def _protection(protection: str | None) -> Text:
    if protection is None:
        return Text("-")
    return Text(protection, style="bold red" if protection == "none" else "")


def _nodes(nodes: list[NodeView]) -> Table:
    numbers = ("Memory MB", "Replicas")
    made = table(("Node", "Site"), ("State", *numbers, "Sandbox"), right=numbers)
    for node in nodes:
        used, whole = _number(node.memory_used_mb, 0), _number(node.memory_mb, 0)
        made.add_row(
            name(node.name),
            shortened(node.site),
            Text(node.state, style=STYLES.get(node.state, "yellow")),
            f"{used} / {whole}" if node.memory_mb else "-",
            str(node.replicas),
            _sandbox(node),
        )
    return made


def _sandbox(node: NodeView) -> Text:
    tier, _, _ = node.sandbox.partition(" ")
    return Text(tier or "-", style="bold red" if tier == "none" else "")


def _age(seconds: float | None) -> str:
    """In three characters."""
    if seconds is None:
        return "-"
    for unit, size in (("s", 1), ("m", 60), ("h", 3600)):
        if seconds < 100 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds / 86400:.0f}d"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
