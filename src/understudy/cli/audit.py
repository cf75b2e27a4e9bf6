"""`understudy audit`: single points of failure, each with its remedy; and who did what."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
from rich.console import Group
from rich.table import Table
from rich.text import Text

from understudy.adapters.audit import AuditRecord
from understudy.adapters.control import Servers
from understudy.cli.output import Output
from understudy.cli.questions import TIMEOUT_S
from understudy.cli.tables import counted
from understudy.core.questions.records import Audit, Finding
from understudy.wire.errors import ProtocolError

if TYPE_CHECKING:
    from rich.console import RenderableType


def run_spof(control: Servers, output: Output) -> bool:
    """Show what was found. False if anything was."""
    document = control.ask("GET", "/v1/audit/spof", timeout_s=TIMEOUT_S)
    try:
        audit = msgspec.convert(document, Audit)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the answer is not an audit: {error}") from error
    if output.as_json:
        output.data(document)
    else:
        output.show(render(audit))
    return not audit.findings


def run_log(control: Servers, output: Output, limit: int) -> None:
    document = control.get("/v1/audit/log", limit=limit)
    try:
        records = msgspec.convert(document, list[AuditRecord])
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the answer is not an audit log: {error}") from error
    if output.as_json:
        output.data(document)
        return
    table = Table("at", "who", "from", "what", "answer", box=None, pad_edge=False)
    for record in records:
        at = datetime.fromtimestamp(record.at_unix_ms / 1000).strftime("%Y-%m-%d %H:%M:%S")
        answer = f"{record.status} {record.why}".strip()
        if record.left_out:
            answer += f" (and {record.left_out} refusals before it)"
        table.add_row(at, record.who or "?", record.origin, record.action, answer)
    output.show(table)


def render(audit: Audit) -> RenderableType:
    looked_at = ", ".join(counted(count, part) for part, count in audit.looked_at.items())
    if not audit.findings:
        return Text(f"No single point of failure: {looked_at}.", style="green")
    answers = sum(finding.answers for finding in audit.findings)
    parts: list[RenderableType] = [
        Text.assemble(
            (counted(len(audit.findings), "single point") + " of failure", "bold"),
            f", {answers} of which clients would notice ({looked_at}; plan revision {audit.revision})",
        )
    ]
    for finding in audit.findings:
        parts += [Text(), *_told(finding)]
    return Group(*parts)


def _told(finding: Finding) -> list[Text]:
    style = "bold red" if finding.answers else "bold yellow"
    return [
        Text.assemble((finding.part, style), f" {finding.name}: {finding.problem}."),
        Text.assemble(("  remedy: ", "cyan"), f"{finding.remedy}."),
    ]
