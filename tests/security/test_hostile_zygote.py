"""A zygote that runs a model's packages says what it likes; its agent believes what it can see."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from understudy.agent.spawner import Spawner
from understudy.agent.zygote import Fork
from understudy.settings.agent import AgentTuning
from understudy.settings.worker import WorkerTuning

LIAR = """
import os, socket, sys, time
import msgspec
from understudy.agent.zygote import *

control = socket.socket(fileno=int(sys.argv[1]))
request, door, _, _ = socket.recv_fds(control, 65536, 8)
worker = msgspec.msgpack.decode(request, type=Fork).worker
victim = {victim}
control.send({lie})
time.sleep(60)
"""
encoded = "msgspec.msgpack.encode({})".format
LIES = {
    "garbage": 'b"\\xc1garbage"',
    "an empty document": 'b"\\x80"',
    "somebody's process": encoded("Forked(worker, victim)"),
    "its agent's process": encoded("Forked(worker, os.getppid())"),
    "process 1": encoded("Forked(worker, 1)"),
    "no process": encoded("Forked(worker, 2**22)"),
    "a number that is none": encoded("Forked(worker, 2**62)"),
    "another worker's name": encoded('Forked("another", victim)'),
    "a failure of another's": encoded('ForkFailed("another", "x")'),
    "an end of somebody's": encoded("Exited(victim, 0)"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_harms_nobody(lie: str) -> None:
    victim = subprocess.Popen(["sleep", "60"])
    code = LIAR.format(victim=victim.pid, lie=LIES[lie])
    forked: list[tuple[str, int]] = []
    failed: list[str] = []
    ended: list[int] = []

    async def test() -> None:
        spawner = Spawner(
            lambda number: [sys.executable, "-c", code, number],
            AgentTuning(),
            lambda worker, pid: forked.append((worker, pid)),
            lambda worker, reason: failed.append(worker),
            lambda pid, status: ended.append(pid),
            trusted=False,
        )
        spawner.start()
        reading, writing = os.pipe()
        spawner.fork(Fork("w1", WorkerTuning()), [reading])
        first = spawner.generation
        for _ in range(100):
            await asyncio.sleep(0.05)
            if failed or ended or spawner.generation > first:
                break
        os.close(reading)
        os.close(writing)
        spawner._closed = True
        spawner._process.kill()  # type: ignore[union-attr]
        await spawner.close()

    try:
        asyncio.run(test())
        assert forked == []
        assert set(failed) <= {"w1"}
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()
