"""Where a worker is reached: made by whoever starts it, since it can neither see nor make such places itself.

A door is a Unix socket and perhaps a TCP port that already listen, and the file of its progress. Their
descriptors go to the worker. A socket whose file somebody removed is made anew, and sent after the first one
through a pair of sockets that is kept for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from understudy.adapters.places import identity_of, same_file, vacant
from understudy.adapters.progress import make_progress_file, progress_path
from understudy.wire.errors import ConfigError

BACKLOG = 128
DESCRIPTORS_MAX = 4
PAUSE_S = 0.2
_ANEW = b"anew"


@dataclass(slots=True, eq=False)
class Doorway:
    """The agent's side. What `descriptors` has is the worker's, and closed here once it has them."""

    path: str
    tcp_address: str = ""
    # Its end of the pair, the socket, its progress and perhaps the port, in this order.
    descriptors: list[int] = field(default_factory=list)
    _identity: tuple[int, int] = (0, 0)
    line: socket.socket | None = None  # to the worker, for what comes later

    @classmethod
    def open(cls, path: str, tcp_host: str = "") -> Doorway:
        """Raises `ConfigError`, also if a live process listens there."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)  # a worker that doesn't read holds nobody up
        door = cls(path, line=ours, descriptors=[theirs.detach()])
        try:
            door._listen()
            if tcp_host:
                door._listen_at(tcp_host)
        except OSError as error:
            door.close()
            raise ConfigError(f"unix:{path}: can't listen: {error}") from error
        except ConfigError:
            door.close()
            raise
        return door

    @classmethod
    def found(cls, path: str) -> Doorway:
        """That of a worker which another agent started: it can't be given another socket."""
        identity = (0, 0)
        with contextlib.suppress(OSError):
            identity = identity_of(path)
        return cls(path, _identity=identity)

    def _listen(self) -> None:
        vacant(self.path)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path)
            listener.listen(BACKLOG)
            self._identity = identity_of(self.path)
            self.descriptors += [os.dup(listener.fileno()), make_progress_file(progress_path(self.path))]

    def _listen_at(self, host: str) -> None:
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as listener:
            listener.bind(address)
            listener.listen(BACKLOG)
            self.tcp_address = tcp_address_of(listener)
            self.descriptors.append(os.dup(listener.fileno()))

    def handed_over(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []

    def restore(self) -> str:
        """What happened to the socket if it was gone; empty: it is there, or that was said before."""
        if same_file(self.path, self._identity):
            return ""
        try:
            if self.line is None:
                raise OSError("its worker was found, not started")
            self._listen()
            socket.send_fds(self.line, [_ANEW], self.descriptors)
        except (OSError, ConfigError) as error:
            known, self._identity = self._identity == (0, 0), (0, 0)
            return "" if known else f"{self.path} is gone and can't be made again: {error}"
        finally:
            self.handed_over()
        return f"{self.path} was removed by somebody; it is there again"

    def close(self) -> None:
        """Leave nothing behind."""
        self.handed_over()
        if self.line is not None:
            self.line.close()
            self.line = None
        remove(self.path)


def tcp_address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"tcp:{host}:{port}"


def remove(path: str) -> None:
    """The files of a door that may be another process's by now."""
    Path(path).unlink(missing_ok=True)
    Path(progress_path(path)).unlink(missing_ok=True)


class Entrance:
    """The worker's side."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        """`descriptors` as a `Doorway` has them; they are this process's from now on."""
        line, listener, self.progress, *ports = descriptors
        self.line = socket.socket(fileno=line)
        self.line.setblocking(False)
        self.listeners = [socket.socket(fileno=number) for number in (listener, *ports)]

    def renewed(self) -> tuple[socket.socket, int] | None:
        """A socket that listens in place of the first, and a file for its progress. None: there is none.

        Raises `EOFError` when nothing will come any more.
        """
        try:
            told, descriptors, _, _ = socket.recv_fds(self.line, len(_ANEW), DESCRIPTORS_MAX)
        except BlockingIOError:
            return None
        except OSError as error:
            raise EOFError from error
        if not told:
            raise EOFError
        if len(descriptors) != 2:
            for descriptor in descriptors:
                os.close(descriptor)
            return None
        return socket.socket(fileno=descriptors[0]), descriptors[1]


class Acceptor:
    """Takes connections at a socket that listens already, on the running loop.

    A loop's own server would have it listen anew, and those who connect would then see the worker's user at
    the other end instead of the agent's.
    """

    def __init__(
        self, listener: socket.socket, make: Callable[[], asyncio.Protocol], tasks: asyncio.TaskGroup
    ) -> None:
        listener.setblocking(False)
        self.listener = listener
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._tasks = tasks
        self._pause: asyncio.TimerHandle | None = None
        self._resume()

    def _resume(self) -> None:
        self._loop.add_reader(self.listener, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self.listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:  # a model has all descriptors
            self._loop.remove_reader(self.listener)
            self._pause = self._loop.call_later(PAUSE_S, self._resume)
            return
        self._tasks.create_task(self._connect(connection))

    async def _connect(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it has gone already
            await self._loop.connect_accepted_socket(self._make, connection)

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self.listener)
        self.listener.close()
