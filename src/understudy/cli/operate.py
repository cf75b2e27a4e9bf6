"""Commands that change what the cluster does: remove, drain, undrain, quarantine."""

from __future__ import annotations

from typing import Literal

import msgspec

from understudy.adapters.control import Servers, segment
from understudy.adapters.operator_tokens import known_token
from understudy.cli.output import Output
from understudy.core.questions.records import Question, QuestionAnswered
from understudy.core.views import from_controller
from understudy.settings import nearest
from understudy.wire.errors import Code, CommandError, UnderstudyError

NAMES_MAX = 20  # in a hint


def run_token(control: Servers, output: Output) -> None:
    url = control.urls[0]
    token = known_token(url, control.data_dir)
    if not token:
        raise CommandError(
            Code.NOT_FOUND,
            f"no token is known for {url}",
            "name the cluster with --cluster FILE, as the user who started it: the token is in the file "
            "operator.token of its data directory",
        )
    if output.as_json:
        output.data({"token": token})
    else:
        output.show(token)


def run_remove(control: Servers, app: str, output: Output) -> None:
    try:
        control.ask("DELETE", f"/v1/apps/{segment(app)}")
    except UnderstudyError as error:
        raise _known(control, error, app, "apps") from error
    _done(output, {"removed": app}, f"{app} is removed")


def run_drain(control: Servers, node: str, output: Output, *, drained: bool) -> None:
    verb = "drain" if drained else "undrain"
    stays = _without_a_place(control, node) if drained else []  # asked first: the plan is another one soon
    try:
        control.ask("POST", f"/v1/nodes/{segment(node)}/{verb}")
    except UnderstudyError as error:
        raise _known(control, error, node, "nodes") from error
    if not drained:
        _done(output, {"node": node, "drained": False}, f"{node} takes work again")
        return
    _done(output, {"node": node, "drained": True, "stays": stays}, f"{node} is being drained")
    if stays and not output.as_json:
        output.note(
            f"warning: no other node can hold {', '.join(stays)}: what runs of it on {node} stays there "
            f"until one can; if {node} ends before, nothing of it is left"
        )


def _without_a_place(control: Servers, node: str) -> list[str]:
    """Apps on `node` for which there is no place without it; none where nobody can say."""
    try:
        document = control.ask("POST", "/v1/plan/what-if", body=Question(fail=(f"node:{node}",)))
        loss = msgspec.convert(document, QuestionAnswered).loss
    except (UnderstudyError, msgspec.ValidationError):
        return []
    if loss is None:
        return []
    affected = [answered.app for answered in loss.apps]
    return [app for app in affected if loss.next_plan is None or app in loss.next_plan.unplaced]


def _known(
    control: Servers, error: UnderstudyError, name: str, what: Literal["apps", "nodes"]
) -> UnderstudyError:
    """`error`, with the names that there are if it is about one that isn't."""
    if error.code is not Code.NOT_FOUND:
        return error
    try:
        view = from_controller(control.get("/v1/status"), control.urls[0])
    except UnderstudyError:
        return error
    names = sorted(each.name for each in (view.apps if what == "apps" else view.nodes))
    near = nearest(name, names)
    hint = f"did you mean {near!r}?" if near else f"there are no {what}"
    if names and not near:
        hint = f"the {what} are {', '.join(names[:NAMES_MAX])}{', …' if len(names) > NAMES_MAX else ''}"
    return CommandError(error.code, error.message, hint)


def run_quarantine_clear(control: Servers, app: str, variant: str, output: Output) -> None:
    control.ask("DELETE", f"/v1/quarantine/{segment(app)}/{segment(variant)}")
    _done(output, {"app": app, "variant": variant, "quarantined": False}, f"{app}/{variant} may run again")


def _done(output: Output, document: dict[str, object], sentence: str) -> None:
    if output.as_json:
        output.data(document)
    else:
        output.stdout.print(sentence, markup=False, soft_wrap=True)


def run_quarantine_list(control: Servers, output: Output) -> None:
    found = from_controller(control.get("/v1/status"), control.urls[0]).quarantines
    if output.as_json:
        output.data({"quarantined": found})
        return
    for quarantine in found:
        output.stdout.print(
            f"version {quarantine.version} of {quarantine.sentence}", markup=False, soft_wrap=True
        )
    if not found:
        output.note("no variant is in quarantine")
