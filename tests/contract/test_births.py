"""A zygote's workers come into the world by a helper, and may end before it does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading

import msgspec

from understudy.adapters.descendants import adopt_orphans
from understudy.agent.zygote import Exited, Zygote

TIMEOUT_S = 10.0


def be_zygote(agents: socket.socket, control: socket.socket, told: int) -> None:
    """One whose worker is killed while its helper, which is stopped, is still its parent."""
    agents.close()
    adopt_orphans()
    zygote = Zygote(control)
    read, write = os.pipe()
    helper = os.fork()
    if helper == 0:
        worker = os.fork()
        if worker == 0:
            signal.pause()
        os.write(write, worker.to_bytes(4, "big"))
        signal.pause()
    worker = int.from_bytes(os.read(read, 4), "big")
    zygote._watch(worker)
    zygote._watch(helper)
    zygote._workers[worker] = 0
    os.kill(worker, signal.SIGKILL)
    os.write(told, helper.to_bytes(4, "big"))
    zygote.serve()


def test_a_worker_that_ends_before_its_helper_is_told_of() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read, write = os.pipe()
    zygote = multiprocessing.get_context("fork").Process(target=be_zygote, args=(ours, theirs, write))
    zygote.start()
    theirs.close()
    ours.settimeout(TIMEOUT_S)
    helper = int.from_bytes(os.read(read, 4), "big")
    ends = threading.Timer(0.2, os.kill, (helper, signal.SIGKILL))  # meanwhile the zygote tries to reap
    ends.start()
    answer = msgspec.msgpack.decode(ours.recv(4096), type=Exited)
    assert answer.status == -signal.SIGKILL
    assert zygote.is_alive()
    ours.close()
    zygote.join(TIMEOUT_S)
    assert zygote.exitcode == 0
