"""Which walls hold at this place, found out by standing them up around a process that does nothing.

To be asked by a process with one thread.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Callable

import msgspec

from understudy.adapters.parents import run_and_exit
from understudy.adapters.sandbox import landlock, namespaces, restricted
from understudy.adapters.sandbox.walls import Tier, Walls

WAIT_S = 10.0
TOLD_BYTES_MAX = 4096


class BestTier(msgspec.Struct, frozen=True):
    """`lacking`: for each better tier, and for this one, what it can't do here and why."""

    tier: Tier
    lacking: tuple[str, ...] = ()
    of_environments: Tier = Tier.NONE  # what surrounds packages of models, and workers that have them

    def __str__(self) -> str:
        return f"{self.tier} ({'; '.join(self.lacking)})" if self.lacking else str(self.tier)


def best(walls: Walls, only: Tier | None = None) -> BestTier:
    """The first of the tiers that holds for `walls`, whatever tier they name; `only` one if it is given."""
    lacking: list[str] = []
    for tier, stand in ((Tier.NAMESPACES, _try_namespaces), (Tier.LANDLOCK, _try_landlock)):
        if only not in (None, tier):
            continue
        problem = stand(msgspec.structs.replace(walls, tier=tier))
        if not problem:
            return BestTier(tier, tuple(lacking) + _lacking(tier), of_environments(tier))
        lacking.append(f"no {tier}: {problem}")
    return BestTier(Tier.NONE, tuple(lacking))


def of_environments(tier: Tier) -> Tier:
    """Only Landlock can be had within walls again. Without it workers are kept in, but not their zygote."""
    try:
        landlock.version()
    except OSError:
        return tier
    return Tier.LANDLOCK


def _lacking(tier: Tier) -> tuple[str, ...]:
    if tier is Tier.LANDLOCK and landlock.version() < landlock.SIGNALS_SINCE:
        return (
            f"Landlock {landlock.version()} keeps no signals in, {landlock.SIGNALS_SINCE} would (Linux 6.12)",
        )
    return ()


def _try_namespaces(walls: Walls) -> str:
    def begin(teller: socket.socket) -> None:
        told = teller.dup()  # the worker's own is closed when it is inside
        namespaces.be_parent(walls, lambda: _use(told), teller, reaps=True)

    return _told_by(begin, packets=3)


def _try_landlock(walls: Walls) -> str:
    def begin(teller: socket.socket) -> None:
        try:
            restricted.restrict(walls)
        except OSError as error:
            teller.send(str(error).encode())
        else:
            teller.send(namespaces.INSIDE)
            _use(teller)

    return _told_by(begin, packets=2)


def _use(teller: socket.socket) -> None:
    """What every worker needs: its packages, its own state, threads, a file to write."""
    try:
        for path in (os.__file__, msgspec.__file__, __file__):
            with open(path, "rb") as file:
                file.read(1)
        os.listdir("/proc/self/fd")
        with tempfile.TemporaryFile() as file:
            file.write(b".")
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
    except (OSError, RuntimeError) as error:
        teller.send(f"what a worker needs isn't to be had inside: {error}".encode())
    else:
        teller.send(namespaces.INSIDE)


def _told_by(begin: Callable[[socket.socket], None], packets: int) -> str:
    """What went wrong in a process that runs `begin`; empty: nothing."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        run_and_exit(lambda: begin(theirs))
    theirs.close()
    ours.settimeout(WAIT_S)
    problem = ""
    with ours:
        while packets and not problem:
            packets -= 1
            try:
                told = ours.recv(TOLD_BYTES_MAX)
            except OSError as error:
                problem = f"it says nothing: {error}"
                break
            if told != namespaces.INSIDE and not told.startswith(b"pids "):
                problem = told.decode() or "it ended"
    os.waitpid(pid, 0)
    return problem
