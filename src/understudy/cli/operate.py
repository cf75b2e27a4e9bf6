"""Commands that change what the cluster does: remove, drain, undrain, quarantine."""

from __future__ import annotations

from understudy.adapters.control import Servers, segment
from understudy.cli.output import Output
from understudy.core.views import from_controller


def run_remove(control: Servers, app: str, output: Output) -> None:
    control.ask("DELETE", f"/v1/apps/{segment(app)}")
    _done(output, {"removed": app}, f"{app} is removed")


def run_drain(control: Servers, node: str, output: Output, *, drained: bool) -> None:
    verb = "drain" if drained else "undrain"
    control.ask("POST", f"/v1/nodes/{segment(node)}/{verb}")
    sentence = f"{node} is being drained" if drained else f"{node} takes work again"
    _done(output, {"node": node, "drained": drained}, sentence)


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
