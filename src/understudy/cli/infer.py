"""One inference from the command line, over the Open Inference Protocol."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from understudy.adapters.control import ControlReply, Servers, failure, segment
from understudy.cli.output import Output
from understudy.wire.errors import Code, CommandError, ConfigError, UnderstudyError

DEADLINE_S_USUAL = 60.0  # apps with a longer one need --timeout
GRACE_S = 5.0  # the gateway keeps deadlines; we wait a little longer for its word
VALUES_SHOWN = 8  # of each output; --json shows all


def read_data(data: str) -> Any:
    """--data as JSON: `-` is standard input, JSON is taken as it stands, anything else names a file."""
    source = "--data"
    text = data
    if data == "-":
        source, text = "standard input", sys.stdin.read()
    elif not data.lstrip().startswith(("[", "{")):
        source = data
        try:
            text = Path(data).read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise CommandError(
                Code.CONFIG,
                f"--data: {data} can't be read: {reason}",
                "give a file, JSON, or - for standard input",
            ) from error
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{source}: not valid JSON: {error}") from error


def build_request(data: Any, metadata: dict[str, Any]) -> dict[str, Any]:
    """A complete request: `data` itself if it has inputs, else its nested list as the only input."""
    if isinstance(data, dict):
        if "inputs" in data:
            return data
        raise ConfigError('--data: a JSON object must be a complete request with "inputs"')
    inputs = metadata.get("inputs", [])
    inputs = [each for each in inputs if not each.get("optional")] or inputs
    if len(inputs) != 1:
        names = ", ".join(i["name"] for i in inputs) or "unknown"
        raise ConfigError(
            f'--data: the model has {len(inputs)} inputs ({names}); give a complete request with "inputs"'
        )
    if not isinstance(data, list):
        raise ConfigError(f"--data: expected a list or an object, got {msgspec.json.encode(data).decode()}")
    spec = inputs[0]
    shape = _shape(data, "--data")
    if len(shape) + 1 == len(spec["shape"]):
        shape = [1, *shape]  # one row was given; the model takes batches
    return {"inputs": [{"name": spec["name"], "datatype": spec["datatype"], "shape": shape, "data": data}]}


def _shape(value: Any, where: str) -> list[int]:
    if not isinstance(value, list):
        return []
    shapes = [_shape(item, f"{where}[{index}]") for index, item in enumerate(value)]
    for index, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ConfigError(f"{where}[{index}]: shape {shape}, but the rows before it have {shapes[0]}")
    return [len(value), *(shapes[0] if shapes else [])]


def run_infer(gateways: Servers, app: str, data: str, output: Output, timeout_s: float | None) -> None:
    """Ask, and show the answer with who gave it. Raises what the gateway's refusal says.

    `timeout_s` None: the app's own deadline.
    """
    given = read_data(data)
    path = f"/v2/models/{segment(app)}"
    try:
        metadata: dict[str, Any] = {} if isinstance(given, dict) else gateways.get(path)
        request = build_request(given, metadata)
        headers = {"Understudy-Timeout-Ms": f"{timeout_s * 1000:.0f}"} if timeout_s else {}
        patience_s = (timeout_s or DEADLINE_S_USUAL) + GRACE_S
        reply = gateways.call("POST", f"{path}/infer", body=request, headers=headers, timeout_s=patience_s)
        if reply.status != 200:
            raise failure(reply)
    except UnderstudyError as error:
        raise _explained(error, app) from error
    document = reply.document()
    who = _who(reply)
    if output.as_json:
        output.data({**who, "response": document})
    else:
        _show(document, who, output)


def _who(reply: ControlReply) -> dict[str, Any]:
    reason = reply.headers.get("understudy-degraded", "")
    return {
        "variant": reply.headers.get("understudy-variant"),
        "version": reply.headers.get("understudy-version"),
        "degraded": bool(reason),
        "reason": reason or None,
    }


def _explained(error: UnderstudyError, app: str) -> UnderstudyError:
    if isinstance(error, CommandError):
        return error
    if error.code is Code.NOT_FOUND:
        return CommandError(error.code, error.message, "`understudy status` lists the apps")
    if error.code in (Code.UNAVAILABLE, Code.SHED):
        return CommandError(error.code, error.message, f"see `understudy events --app {app}`")
    return error


def _show(document: dict[str, Any], who: dict[str, Any], output: Output) -> None:
    from rich.text import Text

    for tensor in document.get("outputs", []):
        shape = "x".join(str(n) for n in tensor.get("shape", []))
        head = Text.assemble(
            (tensor.get("name", "?"), "bold"), f"  {tensor.get('datatype', '?')} [{shape}]  "
        )
        output.stdout.print(head.append(_values(tensor.get("data", []))), soft_wrap=True)
    by = Text.assemble("by ", (str(who["variant"]), "bold"), f" version {who['version']}")
    if who["degraded"]:
        by.append(f", degraded: {who['reason']}", style="yellow")
    output.stdout.print(by, soft_wrap=True)


def _values(data: Any) -> str:
    flat: list[str] = []
    pending = [data]
    while pending and len(flat) <= VALUES_SHOWN:
        value = pending.pop(0)
        if isinstance(value, list):
            pending[:0] = value[: VALUES_SHOWN + 1]
        else:
            flat.append(f"{value:.6g}" if isinstance(value, float) else str(value))
    return " ".join(flat[:VALUES_SHOWN]) + (" …" if len(flat) > VALUES_SHOWN else "")
