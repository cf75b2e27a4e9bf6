"""`understudy failures`: requests that got an error of ours, as the gateways remember them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rich.text import Text

from understudy.adapters.control import Servers, segment
from understudy.cli.output import Output
from understudy.wire.errors import Code, UnderstudyError

ASKED_MAX = 8  # times that an address is asked: several processes may answer there, each knows its own


def run_failures(gateways: Servers, output: Output, *, app: str, request_id: str) -> None:
    """Of every gateway that can be reached. Raises UNAVAILABLE for none, NOT_FOUND for an unknown id."""
    path = "/understudy/failures" + (f"/{segment(app)}" if app else "")
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    errors: list[UnderstudyError] = []
    servers = gateways.each()
    for server in servers:
        try:
            for _ in range(ASKED_MAX):
                for record in server.get(path)["failures"]:
                    found[record["request_id"], record["replica"], record["at_unix_ms"] // 100] = record
        except UnderstudyError as error:
            errors.append(error)
    if len(errors) == len(servers):
        raise errors[0]
    records = sorted(found.values(), key=lambda record: record["at_unix_ms"])
    records = [r for r in records if not request_id or r["request_id"] == request_id]
    if request_id and not records:
        what = f"no gateway remembers a failed request {request_id!r}; older ones are in logs and events"
        raise UnderstudyError(Code.NOT_FOUND, what)
    for record in records:
        if output.as_json:
            output.data(record, lines=True)
        else:
            output.stdout.print(text(record), soft_wrap=True)
    if not records and not output.as_json:
        output.note(f"none: no gateway remembers a failed request{f' of {app}' if app else ''}")


def text(record: dict[str, Any]) -> Text:
    at = datetime.fromtimestamp(record["at_unix_ms"] / 1000).astimezone()
    where = f"{record['app']} {record['version']}/{record['variant'] or '-'} {record['node']}".rstrip()
    shown = Text.assemble(
        (f"{at:%m-%d %H:%M:%S}", "dim"),
        f"  {record['request_id']}  ",
        (where, "bold"),
        f"  {record['client']}  ",
        (record["code"], "red"),
        f": {record['message']}",
    )
    if record["traceback"]:
        shown.append("\n" + record["traceback"].rstrip(), style="dim")
    return shown
