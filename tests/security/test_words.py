"""What models and tenants say: no status, no header and no terminal is theirs to choose."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest
from attacked import Attacked, ask
from harness import infer_body

from understudy.wire.errors import Code

CODES = {code: number for number, code in enumerate(Code)}
OF_MODELS = {
    Code.INVALID_ARGUMENT: 400,
    Code.MODEL_FAILED: 500,
    Code.OUTPUT_INVALID: 500,
    Code.OUT_OF_MEMORY: 503,
    Code.LOAD_FAILED: 500,
}
HARMFUL = ("\x1b", "\x07", "\r", "\u202e", "\x9b")


@pytest.mark.parametrize("code", CODES)
def test_from_a_model_there_are_only_errors_of_models(attacked: Attacked, code: Code) -> None:
    body = infer_body([[float(CODES[code]), 0.0, 0.0, 0.0]])
    status, headers, answer = ask(attacked.gateway, "POST", "/v2/models/liar/infer", body)
    assert status == OF_MODELS.get(code, 500)
    assert not {"www-authenticate", "allow", "set-cookie", "location"} & set(headers)
    assert headers.get("retry-after", "1") == "1"
    assert not any(character in answer["error"] for character in HARMFUL)


def test_a_terminal_is_told_what_it_must_not_obey(attacked: Attacked) -> None:
    """Of a failure, its traceback and the events, as a person reads them."""
    body = infer_body([[float(CODES[Code.MODEL_FAILED]), 0.0, 0.0, 0.0]])
    assert ask(attacked.gateway, "POST", "/v2/models/liar/infer", body)[0] == 500
    gateway = f"http://127.0.0.1:{attacked.gateway}"
    shown = on_terminal("failures", "liar", "--gateway", gateway)
    shown += on_terminal("events", "--url", f"http://127.0.0.1:{attacked.control}")
    assert "liar" in shown
    assert "\\x1b[2J" in shown
    assert "\x1b[2J" not in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown


def on_terminal(*arguments: str) -> str:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        command = [sys.executable, "-m", "understudy", *arguments]
        with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs):
            os.close(theirs)
            said = b""
            while chunk := _read(terminal.fileno()):
                said += chunk
    return said.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # whoever wrote to it has ended
        return b""


OTHERS = ("/v2/repository/index", "/v2/repository/models/plain/load", "/v2/repository/models/plain/unload")


@pytest.mark.parametrize("path", [*OTHERS, "/no"])
def test_only_inference_has_large_bodies(attacked: Attacked, path: str) -> None:
    """Parameters of 60 MB stopped a gateway's loop for seconds, and its parent ended it."""
    parameters = b'{"parameters": {' + b'"a": 1, ' * 200_000 + b'"b": 2}}'
    assert ask(attacked.gateway, "POST", path, parameters)[0] == 413
    assert ask(attacked.gateway, "POST", path, parameters, Transfer_Encoding="identity")[0] in (413, 400, 501)
    assert ask(attacked.gateway, "POST", "/v2/models/plain/infer", parameters)[0] == 400
