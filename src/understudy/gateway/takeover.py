"""How a gateway that is started under the name of a running one gets what that holds: sockets and the name.

successor                            predecessor
connects to the control socket
says the operator's token            sends its listening sockets and their addresses
forks children, which accept         goes on accepting
READY                                gives its claim on the name, then drains
"""

from __future__ import annotations

import hmac
import os
import selectors
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import structlog

from understudy.adapters.claims import Claim
from understudy.adapters.places import identity_of, is_of_our_user, meeting_place, same_file
from understudy.settings.gateway import GatewayConfig
from understudy.wire.errors import ConfigError

SOCKETS_MAX = 64
TAKEOVER_TIMEOUT_S = 5.0  # for the running gateway to hand over its sockets
READY = b"ready"
CLAIM = b"c"
NO_SECRET = b"-"
SECRET_BYTES_MAX = 512

log = structlog.get_logger()


class ControlSocket:
    """Where a successor meets the gateway that runs."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.listener: socket.socket | None = None
        self._identity = (0, 0)

    def open(self) -> socket.socket:
        """To be called when nobody else listens there. Raises `ConfigError` or `OSError`."""
        meeting_place(Path(self.path).parent)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            Path(self.path).unlink(missing_ok=True)
            listener.bind(self.path)
            listener.listen(1)
            self._identity = identity_of(self.path)
        except OSError:
            listener.close()
            raise
        self.listener = listener
        return listener

    @property
    def is_gone(self) -> bool:
        """Somebody has removed it."""
        return self.listener is not None and not same_file(self.path, self._identity)

    def close(self) -> None:
        if self.listener is not None:
            self.listener.close()
            self.listener = None
        if same_file(self.path, self._identity):
            Path(self.path).unlink(missing_ok=True)


class Taken(NamedTuple):
    """`control`: the connection to the predecessor. `sockets`: those of the same address only."""

    control: socket.socket
    sockets: list[socket.socket]
    grpc: str  # its address


def take_over(path: str, gateway: GatewayConfig, secret: str) -> Taken | None:
    """What a running gateway of this name hands over; None if there is none. Raises `ConfigError`.

    `secret`: what only processes of this cluster know; empty where none can be kept.
    """
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.settimeout(TAKEOVER_TIMEOUT_S)
    try:
        control.connect(path)
        if not is_of_our_user(control):
            raise PermissionError("it runs as another user")
        control.send(secret.encode() or NO_SECRET)
        addresses, numbers, _, _ = socket.recv_fds(control, 512, SOCKETS_MAX)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        control.close()
        return None
    except OSError as error:
        control.close()
        what = f"gateway {gateway.name!r} runs already but doesn't hand over ({error}); end it first"
        raise ConfigError(what) from error
    sockets = [socket.socket(fileno=number) for number in numbers]
    http, _, grpc = addresses.decode().partition(" ")
    if http != gateway.http:
        for taken in sockets:
            taken.close()
        sockets = []
    return Taken(control, sockets, grpc)


class Takeover:
    """A process that wants to take over, from its first word to its last, in the predecessor.

    `give` hands over the sockets, and `ready` is called when it serves. Both may raise `OSError`: it is gone,
    and we go on.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        successor: socket.socket,
        secret: str,
        give: Callable[[], None],
        ready: Callable[[], None],
    ) -> None:
        self._selector = selector
        self._successor = successor
        self._secret = secret.encode()
        self._give = give
        self._ready = ready
        self._await(self._asked)

    def _await(self, said: Callable[[], bool]) -> None:
        """Have `said` called when there is something to read; it says whether the next word is waited for."""
        self._selector.register(self._successor, selectors.EVENT_READ, lambda: self._heard(said))

    def _heard(self, said: Callable[[], bool]) -> None:
        self._selector.unregister(self._successor)
        try:
            if said():
                self._await(self._answered)
                return
        except OSError:
            pass
        self._successor.close()

    def _asked(self) -> bool:
        """Whoever has our sockets reads what clients send, keys too."""
        said = self._successor.recv(SECRET_BYTES_MAX)
        known = bool(said) and (not self._secret or hmac.compare_digest(said, self._secret))
        if not known or not is_of_our_user(self._successor):
            log.warning("gateway.stranger_refused", reason="it doesn't know the operator's token")
            return False
        self._give()
        return True

    def _answered(self) -> bool:
        if self._successor.recv(16) == READY:
            self._ready()
        return False


def hand_over(successor: socket.socket, gateway: GatewayConfig, sockets: list[socket.socket]) -> None:
    """Raises `OSError` if it is gone."""
    addresses = f"{gateway.http} {gateway.grpc}"
    socket.send_fds(successor, [addresses.encode()], [each.fileno() for each in sockets])


def take_name(control: socket.socket) -> Claim | None:
    """Tell the predecessor that we serve; its claim, which older ones don't have. Raises `OSError`."""
    control.send(READY)
    _, numbers, _, _ = socket.recv_fds(control, 1, 1)
    return Claim(numbers[0]) if numbers else None


def give_name(successor: socket.socket, held: Claim | None) -> None:
    """Raises `OSError` if it is gone."""
    if held is not None:
        socket.send_fds(successor, [CLAIM], [os.dup(held.fileno())])
