"""`understudy plan` with --fail, --add-node, --remove-node or --explain: questions to the plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Group
from rich.text import Text

from understudy.adapters.control import Servers
from understudy.cli.output import Output
from understudy.cli.plan import HOW
from understudy.cli.tables import counted, name, shortened, table
from understudy.core.questions.records import (
    Answered,
    AnyLoss,
    Explanation,
    Figures,
    Kept,
    Loss,
    NewNode,
    NextPlan,
    PlanChange,
    Question,
    QuestionAnswered,
)
from understudy.wire.errors import Code, CommandError, ProtocolError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

TIMEOUT_S = 120.0  # the planner's time limit is a setting, and large clusters take a while
ABOUT = {
    "place": "Where it runs",
    "larger": "What larger variants need",
    "standby": "Its standby",
    "failures": "What answers",
    "warm": "What it takes to be warm",
    "batching": "What may share a batch",
}
NODE_FORM = "a node is MEMORY_MB, NAME:MEMORY_MB, MEMORY_MB:SITE or NAME:MEMORY_MB:SITE"


def question(fail: Sequence[str], add: Sequence[str], remove: Sequence[str], explain: str | None) -> Question:
    """Raises INVALID_ARGUMENT for what isn't a question."""
    asked = {
        "fail": fail,
        "add": [_new_node(text) for text in add],
        "remove": remove,
        "explain": explain,
    }
    try:
        return msgspec.convert(asked, Question)
    except msgspec.ValidationError as error:
        raise CommandError(Code.INVALID_ARGUMENT, str(error)) from error


def _new_node(text: str) -> NewNode:
    parts = text.split(":")
    at = next((i for i, part in enumerate(parts) if _is_number(part)), None)
    if at is None or at > 1 or len(parts) > at + 2:
        raise CommandError(Code.INVALID_ARGUMENT, f"{text!r} is no node", NODE_FORM)
    node: dict[str, Any] = {"memory_mb": float(parts[at])}
    node |= {"name": parts[0]} if at else {}
    node |= {"site": parts[at + 1]} if len(parts) > at + 1 else {}
    try:
        return msgspec.convert(node, NewNode)
    except msgspec.ValidationError as error:
        raise CommandError(Code.INVALID_ARGUMENT, f"{text!r}: {error}", NODE_FORM) from error


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()


def run_questions(control: Servers, asked: Question, output: Output) -> None:
    document = control.ask("POST", "/v1/plan/what-if", body=asked, timeout_s=TIMEOUT_S)
    if output.as_json:
        output.data(document)
        return
    try:
        answer = msgspec.convert(document, QuestionAnswered)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the answer is not one to a question: {error}") from error
    output.show(render(answer))


def render(answer: QuestionAnswered) -> RenderableType:
    parts: list[RenderableType] = []
    if answer.away:
        parts.append(Text(f"Away already: {', '.join(answer.away)}.", style="yellow"))
    if answer.loss is not None:
        parts += _loss(answer.loss, answer.revision)
    if answer.any_loss is not None:
        parts += _any_loss(answer.any_loss, answer.revision)
    if answer.change is not None:
        parts += _change(answer.change)
    if answer.explanation is not None:
        parts += _explanation(answer.explanation, answer.revision)
    return Group(*parts)


# A loss


def _loss(loss: Loss, revision: int) -> list[RenderableType]:
    counts = {how: sum(app.how == how for app in loss.apps) for how in ("warm", "cold", "static", "none")}
    told = ", ".join(f"{count} {HOW[how][0]}" for how, count in counts.items() if count)
    domains = loss.failure.split("+")
    head = Text.assemble(
        (f"If {' and '.join(domains)} {'is' if len(domains) == 1 else 'are'} lost now", "bold"),
        f" (plan revision {revision}), {len(loss.apps)} of "
        f"{counted(len(loss.apps) + loss.unaffected, 'app')} notice{': ' + told if told else ''}.",
    )
    parts: list[RenderableType] = [head]
    if loss.apps:
        parts += [Text(), _answers(loss.apps)]
    parts += _reasons(loss.apps)
    if loss.fills:
        numbers = ("Memory MB", "Before", "Swapping", "After")
        made = table(("Node",), numbers, right=numbers)
        for fill in loss.fills:
            used = (fill.before_mb, fill.swapping_mb, fill.after_mb)
            made.add_row(name(fill.node), f"{fill.memory_mb:.0f}", *(f"{mb:.0f}" for mb in used))
        parts += [Text(), made]
    return [*parts, Text(), _next_plan(loss.next_plan)]


def _answers(apps: Iterable[Answered], *, losses: bool = False) -> Table:
    numbers = ("Accuracy", "Less", "Recovery ms")
    made = table(("App", "Answered by"), (*(("Lost",) if losses else ()), "How", *numbers), right=numbers)
    for app in apps:
        text, style = HOW.get(app.how, (app.how, ""))
        by = (
            f"{app.variant} {app.node}"
            if app.variant
            else "static answer"
            if app.how == "static"
            else "nobody"
        )
        if app.first not in (None, app.variant):
            by += f" (first {app.first})"
        figures = (f"{app.accuracy:.3f}", f"{app.accuracy_lost:.1%}", f"{app.recovery_ms:.0f}")
        made.add_row(
            name(app.app),
            shortened(by),
            *((" + ".join(app.lost),) if losses else ()),
            Text(text, style=style),
            *(figures if app.variant else ("-", "-", "-")),
        )
    return made


def _reasons(apps: Iterable[Answered]) -> list[RenderableType]:
    why = [f"{app.app}: {app.why}" for app in apps if app.why]
    return [Text(), *(_remark(sentence) for sentence in why)] if why else []


def _next_plan(plan: NextPlan | None) -> Text:
    if plan is None:
        return Text("No node would be left to plan for.", style="bold red")
    told = f"The next plan would start {counted(plan.moved, 'replica')}: "
    told += f"{counted(plan.full_size, 'app')} at full size"
    told += f", {plan.smaller} smaller" if plan.smaller else ""
    told += f", without a place: {', '.join(plan.unplaced)}" if plan.unplaced else ""
    told += f". After one more failure {plan.unanswered or 'none'} of them would be without an answer."
    return Text(told)


def _any_loss(loss: AnyLoss, revision: int) -> list[RenderableType]:
    silent = sum(app.how in ("none", "static") for app in loss.worst)
    head = Text.assemble(
        (f"If {loss.failure} nodes are lost now", "bold"),
        f" (plan revision {revision}; {loss.tried} of {loss.possible} such losses were played), "
        f"{len(loss.worst)} of {counted(len(loss.worst) + loss.unaffected, 'app')} may notice, and {silent} "
        "may be without an answer of their own. At worst, each by itself:",
    )
    parts: list[RenderableType] = [head]
    if loss.tried < loss.possible:
        parts.append(Text("Played were those of the nodes that hold most replicas.", style="yellow"))
    if loss.worst:
        parts += [Text(), _answers(loss.worst, losses=True)]
    if loss.hurting:
        made = table(("Lost together", "Without an answer"), ("Apps", "Smaller"), right=("Apps", "Smaller"))
        for together in loss.hurting:
            unanswered = shortened(", ".join(together.unanswered) or "-")
            lost = shortened(" + ".join(together.lost))
            made.add_row(lost, unanswered, str(len(together.unanswered)), str(together.smaller))
        parts += [Text(), made]
    return parts


# Nodes that come or go


def _change(change: PlanChange) -> list[RenderableType]:
    what = [f"with {node}" for node in change.added] + [f"without {node}" for node in change.removed]
    numbers = ("Now", "Then")
    made = table(("",), numbers, right=numbers)
    for label, now, then in _rows(change.before, change.after):
        made.add_row(shortened(label), now, then)
    parts: list[RenderableType] = [
        Text(f"What would change {' and '.join(what)}", style="bold"),
        Text(),
        made,
    ]
    starts = ", ".join(change.starts) or "none"
    more = f" and {change.moved - len(change.starts)} more" if change.moved > len(change.starts) else ""
    parts += [Text(), Text(f"Replicas that start: {change.moved} ({starts}{more}).")]
    if change.warnings_gone:
        parts += [Text(), Text("No longer so:", style="green"), *map(_remark, change.warnings_gone)]
    if change.warnings_new:
        parts += [Text(), Text("New:", style="yellow"), *map(_remark, change.warnings_new)]
    return parts


def _rows(before: Figures, after: Figures) -> Iterable[tuple[str, str, str]]:
    both = before, after

    def row(label: str, shown: Callable[[Figures], str]) -> tuple[str, str, str]:
        return label, shown(before), shown(after)

    yield row("nodes", lambda f: str(f.nodes))
    yield row("weighted accuracy retained", lambda f: f"{f.retained:.2%}")
    yield row("objective", lambda f: f"{f.objective:.3f}")
    yield row("apps with a place", lambda f: _of(f.placed, f.apps))
    yield row("apps at full size", lambda f: _of(f.full_size, f.apps))
    for kind in dict.fromkeys(kept.kind for figures in both for kept in figures.kept):
        yield row(f"apps that answer when {_loss_of(kind)} lost", partial(_answered, kind))
        yield row(f"critical apps warm when {_loss_of(kind)} lost", partial(_warm, kind))
    yield row("memory of protection, of the primaries'", lambda f: f"{f.memory_overhead:.0%}")


def _loss_of(kind: str) -> str:
    """Of a kind of failure: "node", "site", "site/1" (the second level of sites), "any-2", or its name."""
    what, _, level = kind.partition("/")
    if kind in ("node", "site"):
        return f"any {kind} is"
    if what == "site" and level.isdecimal():
        return f"any site of level {int(level) + 1} is"
    return f"{kind} is" if ":" in kind else f"{kind} nodes are"


def _answered(kind: str, figures: Figures) -> str:
    kept = _kept(figures, kind)
    return _of(kept.answered, figures.apps) if kept else "-"


def _warm(kind: str, figures: Figures) -> str:
    kept = _kept(figures, kind)
    return _of(kept.critical_warm, figures.critical) if kept else "-"


def _kept(figures: Figures, kind: str) -> Kept | None:
    return next((kept for kept in figures.kept if kept.kind == kind), None)


def _of(count: int, whole: int) -> str:
    return f"{count} of {whole}"


# Why


def _explanation(explanation: Explanation, revision: int) -> list[RenderableType]:
    head = Text.assemble(
        (explanation.app, "bold"), f" version {explanation.version}, plan revision {revision}"
    )
    parts: list[RenderableType] = [head]
    for reason in explanation.reasons:
        parts += [Text(), Text(ABOUT.get(reason.about, reason.about), style="bold")]
        parts += [Text(f"  {sentence}") for sentence in reason.sentences]
    return parts


def _remark(sentence: str) -> Text:
    return Text.assemble(("! ", "bold yellow"), sentence)
