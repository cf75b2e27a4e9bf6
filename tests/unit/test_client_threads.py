"""`Client`: the event loop in its thread, seen from other threads, loops and processes."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from client_world import SILENCE, Scripted, doubled, gateways

from understudy.client import Client, ClientError, Closed

X = {"x": np.array([[1.0, 2.0]], np.float32)}


@pytest.fixture
def gateway() -> Iterator[Scripted]:
    """A scripted gateway in a thread of its own."""
    ready, box = threading.Event(), {}

    async def serve() -> None:
        async with gateways(1) as (only,):
            box["gateway"], box["stop"] = only, asyncio.Event()
            box["loop"] = asyncio.get_running_loop()
            ready.set()
            await box["stop"].wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ready.wait()
    yield box["gateway"]
    box["loop"].call_soon_threadsafe(box["stop"].set)
    thread.join()


def client_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "understudy-client"]


def test_threads_get_their_own_answers(gateway: Scripted):
    wrong: list[object] = []

    def ask(client: Client, value: float) -> None:
        for _ in range(20):
            y = client.infer("double", {"x": [[value, value]]}).outputs["y"]
            if y.tolist() != [[2 * value, 2 * value]]:
                wrong.append(y)

    with Client(gateway.url) as client:
        threads = [threading.Thread(target=ask, args=(client, float(n))) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(client_threads()) == 1
    assert not wrong
    assert not client_threads()


def test_a_notebook_has_a_loop_of_its_own(gateway: Scripted):
    async def cell() -> None:
        with Client(gateway.url) as client:
            assert client.infer("double", X).outputs["y"].tolist() == [[2.0, 4.0]]
            assert client.ready("double")
            assert client.metadata("double").inputs[0].shape == (-1, 2)
            assert [model.name for model in client.models()] == ["double"]

    asyncio.run(cell())


def test_closing_ends_calls_of_other_threads(gateway: Scripted):
    gateway.infer = lambda got: SILENCE
    client, raised = Client(gateway.url), []

    def ask() -> None:
        try:
            client.infer("double", X)
        except ClientError as error:
            raised.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not gateway.got:
        os.sched_yield()
    client.close()
    client.close()
    thread.join()
    assert [type(error) for error in raised] == [Closed]
    with pytest.raises(Closed):
        client.infer("double", X)


class Interrupt(Exception):
    """As Ctrl-C, but for no one else."""


def test_an_interrupt_cancels_the_call(gateway: Scripted):
    gateway.infer = lambda got: SILENCE

    def interrupt(*_: object) -> None:
        raise Interrupt

    def strike() -> None:
        while not gateway.got:
            os.sched_yield()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    striker = threading.Thread(target=strike)
    striker.start()
    try:
        with Client(gateway.url) as client:
            with pytest.raises(Interrupt):
                client.infer("double", X)
            while not gateway.hung_up.is_set():
                os.sched_yield()
    finally:
        striker.join()
        signal.signal(signal.SIGUSR1, before)


def test_a_forgotten_client_ends_its_thread(gateway: Scripted):
    client = Client(gateway.url)
    client.infer("double", X)
    (thread,) = client_threads()
    del client
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_gets_connections_of_its_own(gateway: Scripted):
    gateway.infer = doubled
    with Client(gateway.url) as client:
        client.infer("double", X)
        pid = os.fork()
        if pid == 0:
            answer = client.infer("double", X).outputs["y"].tolist()
            os._exit(0 if answer == [[2.0, 4.0]] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        client.infer("double", X)
        assert gateway.connections == 2
