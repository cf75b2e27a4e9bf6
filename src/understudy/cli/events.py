"""`understudy events`: what happened, oldest first."""

from __future__ import annotations

import contextlib
import time
from datetime import datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from understudy.adapters.control import Servers
from understudy.cli.output import Output
from understudy.cli.tables import one_line
from understudy.wire.errors import Code, UnderstudyError

FOLLOW_INTERVAL_S = 0.5
PAGE_EVENTS = 500
TIME_COLUMNS = 18  # month and day, time of day to the millisecond
KIND_COLUMNS = 21
WHERE_COLUMNS = 12
BAD = {"lost", "died", "failed", "quarantined", "crashed", "poisoned", "corrupted", "refused", "recorded"}
ODD = {"suspected", "activated", "drained", "returned", "discarded"}


def run_events(control: Servers, output: Output, *, app: str, node: str, limit: int, follow: bool) -> None:
    """Show the newest `limit` events and, with `follow`, those that come after, until Ctrl-C."""
    document = control.get("/v1/events", limit=limit, app=app, node=node)
    if output.as_json and not follow:
        output.data(document)
        return
    events = document["events"]
    if not follow:
        events += document["unwritten"]  # while its store is away, the controller keeps them in memory
    after = 0
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            for event in events:
                _write(event, output)
                after = event["serial"]
            if not follow:
                return
            time.sleep(FOLLOW_INTERVAL_S)
            events = _later(control, after, app=app, node=node)


def _later(control: Servers, after: int, *, app: str, node: str) -> list[dict[str, Any]]:
    try:
        document = control.get("/v1/events", after=after, limit=PAGE_EVENTS, app=app, node=node)
    except UnderstudyError as error:
        if error.code in (Code.UNAVAILABLE, Code.TIMEOUT, Code.STORE_UNAVAILABLE):
            return []  # it may come back; events are kept for it
        raise
    events: list[dict[str, Any]] = document["events"]
    return events


def _write(event: dict[str, Any], output: Output) -> None:
    if output.as_json:
        output.data(event, lines=True)
    elif output.stdout.is_terminal:
        output.show(row(event))
    else:
        output.stdout.print(line(event), soft_wrap=True)


def row(event: dict[str, Any]) -> Table:
    """For terminals: the message is folded beneath itself."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    for width in (TIME_COLUMNS, KIND_COLUMNS, WHERE_COLUMNS):
        grid.add_column(width=width, no_wrap=True, overflow="ellipsis")
    grid.add_column(overflow="fold")
    grid.add_row(*_cells(event))
    return grid


def line(event: dict[str, Any]) -> Text:
    """For pipes: whole, on one line."""
    at, kind, where, message = _cells(event)
    kind.pad_right(KIND_COLUMNS - len(kind))  # longer ones stay whole
    where.pad_right(WHERE_COLUMNS - len(where))
    return Text("  ").join((at, kind, where, message))


def _cells(event: dict[str, Any]) -> tuple[Text, Text, Text, Text]:
    """Local time, kind, where, what."""
    at = datetime.fromtimestamp(event["at_unix_ms"] / 1000).astimezone()
    verb = event["kind"].rpartition(".")[2]
    style = "red" if verb in BAD else "yellow" if verb in ODD else "cyan"
    where = " ".join(name for name in (event["app"], event["node"]) if name) or "-"
    return (
        Text(f"{at:%m-%d %H:%M:%S}.{at.microsecond // 1000:03}", style="dim"),
        Text(event["kind"], style=style),
        Text(where, style="bold"),
        Text(one_line(event["message"])),
    )
