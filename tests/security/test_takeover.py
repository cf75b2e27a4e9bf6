"""A gateway's sockets, on which clients' keys arrive, are handed to a process of its own cluster only."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from attacked import Attacked, ask
from harness import infer_body


@pytest.mark.parametrize("said", [b"", b"-", b"ready", b"x" * 43, b"\0" * 500])
def test_who_does_not_know_the_secret_gets_nothing_and_ends_nothing(attacked: Attacked, said: bytes) -> None:
    path = Path(attacked.harness.cluster.config.run_dir) / "gateway-g1.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as thief:
        thief.settimeout(10)
        thief.connect(str(path))
        if said:
            thief.send(said)
        else:
            thief.shutdown(socket.SHUT_WR)
        try:
            data, taken, _, _ = socket.recv_fds(thief, 512, 64)
        except ConnectionResetError:
            data, taken = b"", []
        assert (data, taken) == (b"", [])
    assert ask(attacked.gateway, "POST", "/v2/models/plain/infer", infer_body([[0.0] * 4]))[0] == 200
