"""A gateway's parent and children: replaced, handed over and refused, on real processes under traffic."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
import trustme
from families import ROWS
from harness import Harness, infer_body, running
from secured_gateway import trusting, write_pair

from understudy.adapters.operator_tokens import kept_token

BODY = infer_body(ROWS)
APP = "plain"


def parent_of(harness: Harness) -> int:
    return harness.cluster.roles["gateway", "g1"].pid


def children(parent: int) -> list[int]:
    return sorted(child.pid for child in psutil.Process(parent).children())


@contextmanager
def successor(harness: Harness) -> Iterator[subprocess.Popen[bytes]]:
    """`understudy gateway g1`, once more."""
    command = [sys.executable, "-m", "understudy", "gateway", "g1"]
    command += ["--cluster", str(harness.cluster.config_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=20)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_gateway_started_again_takes_over_without_a_failed_request(folder: Path, processes: int):
    async def test() -> None:
        async with running(folder, processes=processes) as harness:
            former = harness.cluster.roles["gateway", "g1"]
            former.wanted = False
            with ExitStack() as stack:  # the traffic ends before the successor does
                async with harness.traffic(APP, BODY, tries=2) as traffic:
                    process = stack.enter_context(successor(harness))
                    await harness.until(lambda: former.exit_status == 0, 20, "the former gateway has ended")
                    struck = time.monotonic()
                    await harness.until(lambda: len(traffic.since(struck)) > 100, 10, "traffic goes on")
                    assert process.poll() is None
                    assert len(children(process.pid)) == processes
            assert not traffic.failed, traffic.failed[0]

    asyncio.run(test())


def test_no_handshake_fails_while_a_gateway_hands_over(folder: Path):
    authority = trustme.CA()
    write_pair(folder, authority)
    tls = '[gateways.tls]\ncert = "cert.pem"\nkey = "key.pem"\n'

    async def test() -> None:
        async with running(folder, processes=2, of_gateway=tls, tls=trusting(authority)) as harness:
            former = harness.cluster.roles["gateway", "g1"]
            former.wanted = False
            statuses: list[int] = []
            done = asyncio.Event()

            async def ask() -> None:
                while not done.is_set():
                    statuses.append((await harness.infer(APP, ROWS)).status)  # on a connection of its own

            with ExitStack() as afterwards:
                async with asyncio.TaskGroup() as clients:
                    for _ in range(4):
                        clients.create_task(ask())
                    afterwards.enter_context(successor(harness))
                    await harness.until(lambda: former.exit_status == 0, 20, "the former gateway has ended")
                    count = len(statuses)
                    await harness.until(lambda: len(statuses) > count + 50, 10, "requests go on")
                    done.set()
            assert set(statuses) == {200}

    asyncio.run(test())


def test_a_successor_that_dies_too_early_changes_nothing(folder: Path):
    async def test() -> None:
        async with running(folder) as harness:
            async with harness.traffic(APP, BODY) as traffic:
                parent = parent_of(harness)
                control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                control.connect(str(Path(harness.cluster.config.run_dir) / "gateway-g1.sock"))
                control.send(kept_token(Path(harness.cluster.config.data_dir)).encode())
                control.settimeout(10)
                _, numbers, _, _ = await asyncio.to_thread(socket.recv_fds, control, 256, 8)
                assert len(numbers) == 1
                for number in numbers:
                    os.close(number)
                control.close()
                struck = time.monotonic()
                await harness.until(lambda: len(traffic.since(struck)) > 100, 10, "traffic goes on")
                assert parent_of(harness) == parent
            assert not traffic.failed, traffic.failed[0]

    asyncio.run(test())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_serving_process_is_replaced_and_no_connection_is_refused(folder: Path, number: signal.Signals):
    async def test() -> None:
        extra = "[gateway]\npulse_timeout_s = 0.5\n"
        async with running(folder, processes=2, extra=extra) as harness:
            parent = parent_of(harness)
            before = children(parent)
            assert len(before) == 2
            os.kill(before[0], number)

            def replaced() -> bool:
                with socket.create_connection(("127.0.0.1", harness.ports[0]), timeout=5):
                    now = children(parent)
                return len(now) == 2 and before[0] not in now

            await harness.until(replaced, 10, "a new process in its place")
            for _ in range(20):  # new connections reach both processes
                answer = await harness.infer(APP, ROWS)
                assert answer.status == 200, answer

    asyncio.run(test())


def test_a_lone_serving_process_that_is_killed_leaves_connections_waiting(folder: Path):
    async def test() -> None:
        async with running(folder) as harness:
            (child,) = children(parent_of(harness))
            os.kill(child, signal.SIGKILL)
            answer = await harness.infer(APP, ROWS)  # accepted by the kernel, answered by the next process
            assert answer.status == 200
            assert children(parent_of(harness)) != [child]

    asyncio.run(test())


def test_children_end_with_their_parent(folder: Path):
    async def test() -> None:
        async with running(folder, processes=2) as harness:
            role = harness.cluster.roles["gateway", "g1"]
            before = children(role.pid)
            role.send(signal.SIGKILL)
            await harness.until(
                lambda: not any(map(psutil.pid_exists, before)), 20, "the children have ended"
            )
            role.start()
            await harness.until(lambda: harness.infer(APP, ROWS), 10, "the gateway serves again")

    asyncio.run(test())


def test_a_port_in_use_is_refused(folder: Path):
    async def test() -> None:
        async with running(folder) as harness:
            harness.cluster.kill_gateway("g1")
            address = ("127.0.0.1", harness.ports[0])
            listener = await harness.until(lambda: socket.create_server(address), 10, "the gateway is gone")
            with listener, successor(harness) as process:
                _, errors = await asyncio.to_thread(process.communicate, timeout=20)
            assert process.returncode == 2
            assert b"can't listen on 127.0.0.1:" in errors

    asyncio.run(test())
