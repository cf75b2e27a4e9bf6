"""The real zygote, as an agent starts it, its workers behind walls of one tier."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
from worker_process import DEADLINE_S

from understudy.adapters.doors import Doorway
from understudy.adapters.sandbox.walls import Tier, Walls
from understudy.agent.rooms import Rooms
from understudy.agent.variables import for_models
from understudy.agent.zygote import MESSAGE_BYTES_MAX, Answer, Fork, Forked
from understudy.settings.worker import WorkerTuning


class AgentsZygote:
    """`prepare` runs in the zygote's process before it is one. `folder` is as an agent's state directory."""

    def __init__(
        self,
        folder: Path,
        walls: Walls | None = None,
        environment: dict[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.rooms = Rooms(folder, walls or Walls(Tier.NONE))
        self._doors: list[Doorway] = []
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(DEADLINE_S)
        command = [sys.executable, "-P", "-m", "understudy.agent.zygote", str(theirs.fileno())]
        with theirs:
            self.process = subprocess.Popen(
                command,
                pass_fds=(theirs.fileno(),),
                preexec_fn=prepare,
                env=for_models(os.environ, ()) | (environment or {}),
            )

    def __enter__(self) -> AgentsZygote:
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()
        self.process.wait(DEADLINE_S)
        for door in self._doors:
            door.close()

    def fork(self, path: Path, *, network: bool = False) -> int:
        answer = self.ask(path, network=network)
        assert isinstance(answer, Forked), answer
        return answer.pid

    def ask(self, path: Path, *, network: bool = False) -> Answer:
        """For a worker that is named after the socket at `path`."""
        door = Doorway.open(str(path))
        self._doors.append(door)
        fork = Fork(
            path.name, WorkerTuning(), walls=self.rooms.walls(path.name, "+network" if network else "")
        )
        socket.send_fds(self._control, [msgspec.msgpack.encode(fork)], door.descriptors)
        answer = self.answer()
        door.handed_over()
        return answer

    def answer(self) -> Answer:
        return msgspec.msgpack.decode(self._control.recv(MESSAGE_BYTES_MAX), type=Answer)
