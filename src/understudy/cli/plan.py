"""`understudy plan`: what is protected, how, from which failures, and at what cost."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Group
from rich.text import Text

from understudy.adapters.control import Servers
from understudy.cli.output import Output
from understudy.cli.tables import counted, name, shortened, table
from understudy.core.questions.records import Held
from understudy.wire.errors import ProtocolError
from understudy.wire.records import Outcome, Placement, Plan, Role

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

WORST = "Worst ms"
FAILURES_SHOWN_MAX = 8  # columns; beyond it an app's outcomes are counted instead
HOW = {  # how an app survives a failure -> what the table says, and its style
    "unaffected": ("-", "dim"),
    "warm": ("warm", "green"),
    "cold": ("cold", "yellow"),
    "static": ("static", "magenta"),
    "none": ("LOST", "bold red"),
}


class PlanView(Plan, frozen=True):
    """The plan in force, the memory of its protection as a fraction of the primaries', and by device."""

    memory_overhead: float = 0.0
    held: tuple[Held, ...] = ()


def run_plan(control: Servers, output: Output) -> None:
    document = control.get("/v1/plan")
    if output.as_json:
        output.data(document)
    else:
        output.show(render(_converted(document)))


def _converted(document: Any) -> PlanView:
    try:
        return msgspec.convert(document, PlanView)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the answer is not a plan: {error}") from error


def render(plan: PlanView) -> RenderableType:
    if plan.revision == 0:
        return Text("No plan yet: nothing is deployed, or no node is connected.")
    parts: list[RenderableType] = [_head(plan), Text(), _table(plan)]
    if plan.outcomes:
        parts += [
            Text(),
            Text("After each loss: - nothing changes; warm: a standby answers; cold: one is loaded"),
        ]
    if plan.held:
        parts += [Text(), _nodes(plan.held)]
    weak = [f"{app}: no primary: {why}" for app, why in sorted(plan.unplaced.items())] + list(plan.warnings)
    if weak:
        parts += [Text(), *(Text.assemble(("! ", "bold yellow"), sentence) for sentence in weak)]
    else:
        parts += [
            Text(),
            Text(
                "Every app answers in all of these losses; `understudy audit spof` looks further.",
                style="green",
            ),
        ]
    return Group(*parts)


def _head(plan: PlanView) -> Text:
    head = Text.assemble(("plan", "bold"), f" revision {plan.revision}  {plan.reason}\n")
    head.append(
        f"{plan.method or 'solved'} in {plan.solve_ms:.0f} ms, at most {plan.gap:.2%} from the optimum; "
    )
    head.append(f"{counted(plan.moved, 'replica')} started anew\n")
    return head.append(f"protection takes {plan.memory_overhead:.0%} of the primaries' memory on top")


def _table(plan: Plan) -> Table:
    failures = list(dict.fromkeys(outcome.failure for outcome in plan.outcomes))
    by_app: dict[str, dict[str, Outcome]] = {}
    for outcome in plan.outcomes:
        by_app.setdefault(outcome.app, {})[outcome.failure] = outcome
    placed: dict[tuple[str, Role], list[Placement]] = {}
    for placement in plan.placements:
        placed.setdefault((placement.app, placement.role), []).append(placement)
    each = len(failures) <= FAILURES_SHOWN_MAX
    losses = tuple(_loss(failure) for failure in failures) if each else ("When something is lost",)
    made = table(("App", "Primary", "Standby"), (*losses, WORST), right=(WORST,))
    apps = dict.fromkeys([*(p.app for p in plan.placements), *by_app, *plan.unplaced])
    for app in sorted(apps):
        outcomes = by_app.get(app, {})
        cells = [_cell(outcomes.get(failure)) for failure in failures] if each else [_counted(outcomes)]
        worst = max((o.recovery_ms for o in outcomes.values() if o.how in ("warm", "cold")), default=None)
        made.add_row(
            name(app),
            shortened(_placed(placed.get((app, Role.PRIMARY), []))),
            shortened(_placed(placed.get((app, Role.STANDBY), []))),
            *(cells if app not in plan.unplaced else [_cell(None, placed=False)] * len(cells)),
            "-" if worst is None else f"{worst:.0f}",
        )
    return made


def _nodes(held: tuple[Held, ...]) -> Table:
    numbers = ("Memory MB", "Planned", "Kept free")
    made = table(("Node", "Site"), (*numbers, "For the loss of"), right=numbers)
    for each in held:
        at = f"{each.node} {each.device}" if each.device else each.node
        figures = (f"{mb:.0f}" for mb in (each.memory_mb, each.used_mb, each.kept_mb))
        made.add_row(name(at), shortened(each.site), *figures, _loss(each.kept_for) if each.kept_for else "-")
    return made


def _loss(failure: str) -> str:
    kind, _, lost = failure.partition(":")
    return lost if kind == "node" else f"{kind} {lost}"


def _cell(outcome: Outcome | None, *, placed: bool = True) -> Text:
    """No outcome: the failure doesn't affect an app that has a place."""
    how = outcome.how if outcome else "unaffected" if placed else "none"
    text, style = HOW.get(how, (how, ""))
    return Text(text, style=style)


def _counted(outcomes: dict[str, Outcome]) -> Text:
    counts = Counter(outcome.how for outcome in outcomes.values())
    parts = [(f"{counts[how]} {how}", style) for how, (_text, style) in HOW.items() if counts[how]]
    return Text(", ").join(Text(text, style=style) for text, style in parts) if parts else _cell(None)


def _placed(placements: list[Placement]) -> str:
    return ", ".join(" ".join(filter(None, (p.variant, p.node, p.device))) for p in placements) or "-"
