"""A gateway's parent process: what it does with what it hears."""

from __future__ import annotations

import os
import selectors
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from understudy.config import load_cluster
from understudy.gateway.host import Host, _hold
from understudy.wire.errors import ConfigError


def test_what_ended_in_the_same_moment_is_not_asked_again(tmp_path: Path):
    """A child that dies closes its pulse: both descriptors are ready at once, in either order."""
    path = tmp_path / "CLUSTER.toml"
    path.write_text('[[gateways]]\nname = "g1"\n[[nodes]]\nname = "n1"\nmemory_mb = 9\n')
    config = load_cluster(path)
    host = Host(config, config.gateway_named("g1"))
    asked: list[int] = []
    pipes = [os.pipe(), os.pipe()]

    def end_both(read_end: int) -> None:
        asked.append(read_end)
        for number, _ in pipes:
            host._selector.unregister(number)
            os.close(number)

    for read_end, write_end in pipes:
        host._selector.register(read_end, selectors.EVENT_READ, lambda number=read_end: end_both(number))
        os.close(write_end)
    host._attend(1.0)
    assert len(asked) == 1
    host._selector.close()


def test_a_port_of_grpc_is_shared_within_a_gateway_only():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    with ExitStack() as stack:
        parent = stack.enter_context(_hold(address, shared=False))
        with pytest.raises(ConfigError, match=f"grpc: can't listen on {address}"):
            _hold(address, shared=False)  # before any child listens
        child = stack.enter_context(socket.create_server(("127.0.0.1", port), reuse_port=True))
        with pytest.raises(ConfigError, match="can't listen"):
            _hold(address, shared=False)
        stack.enter_context(_hold(address, shared=True))  # of a successor
        parent.close()
        child.close()
        with pytest.raises(ConfigError, match="can't listen"):
            _hold(address, shared=False)


def test_a_port_of_grpc_can_be_had_again_while_clients_are_still_connected():
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as child:
        address = child.getsockname()
        client = socket.create_connection(address)
        accepted, _ = child.accept()
    with client, accepted, _hold(f"127.0.0.1:{address[1]}", shared=False):
        pass
