"""Another user of the machine who listens where a cluster of ours did, or will."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from understudy.adapters.control import Servers
from understudy.adapters.operator_tokens import kept_token
from understudy.adapters.places import stranger_behind
from understudy.wire.errors import Code, CommandError

SOMEBODY = 1234  # a user without any right
LISTENER = """
import socket, sys
with socket.create_server((sys.argv[1], 0), family=int(sys.argv[2])) as listening:
    print(listening.getsockname()[1], flush=True)
    while True:
        link, _ = listening.accept()
        link.settimeout(10)
        print(link.recv(65536), flush=True)
        link.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}")
        link.close()
"""


class Listener:
    def __init__(self, user: int, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", LISTENER, host, str(int(family))],
            stdout=subprocess.PIPE,
            text=True,
            **({} if user == os.geteuid() else {"user": user, "group": user, "extra_groups": []}),
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def heard(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


@pytest.fixture(params=[SOMEBODY, os.geteuid()], ids=["somebody", "us"])
def listener(request: pytest.FixtureRequest) -> Iterator[Listener]:
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else too")
    found = Listener(request.param)
    yield found
    found.process.kill()
    found.process.communicate()


def test_another_user_is_not_told_the_operators_token(
    listener: Listener, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    token = kept_token(tmp_path)
    servers = Servers([f"http://127.0.0.1:{listener.port}"], "controller", "", data_dir=tmp_path)
    if "somebody" in request.node.name:
        with pytest.raises(CommandError, match=f"a process of user {SOMEBODY} answers at http") as caught:
            servers.call("GET", "/v1/status")
        assert caught.value.code is Code.UNAUTHENTICATED
        assert listener.heard() == "b''\n"
    else:
        assert servers.call("GET", "/v1/status").status == 200
        assert token in listener.heard()


def test_a_token_that_is_given_is_sent_to_whoever_is_meant(
    listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_TOKEN", "that-users")
    servers = Servers([f"http://127.0.0.1:{listener.port}"], "controller", "", data_dir=tmp_path)
    servers.call("GET", "/v1/status")
    assert "that-users" in listener.heard()


@pytest.mark.parametrize(("host", "asked"), [("0.0.0.0", "127.0.0.1"), ("::1", "::1"), ("::", "::1")])
def test_who_answers_is_known_before_the_connection_is_taken(host: str, asked: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else too")
    found = Listener(SOMEBODY, host)
    try:
        found.process.send_signal(signal.SIGSTOP)  # it takes none
        with socket.create_connection((asked, found.port)) as link:
            assert stranger_behind(link) == SOMEBODY
    finally:
        found.process.kill()
        found.process.communicate()
