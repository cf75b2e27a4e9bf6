"""A gateway's parent process: it holds the port; its children serve, are watched, replaced and handed over.

Because the listening sockets live here, a connection made while a child is being replaced waits in the
kernel instead of being refused, and a gateway started under the name of a running one takes its sockets over:
it begins to accept as soon as it can answer, then the former one drains. No connection falls in between.

Lives here: sockets, children, signals, takeover. Does not live here: requests (`process`). No event loop runs
in the parent, so that it can fork at any time.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import selectors
import signal
import socket
import sys
import time
from pathlib import Path
from time import monotonic

import structlog

from understudy.adapters import descriptors, logs
from understudy.adapters.claims import Claim, claim
from understudy.adapters.operator_tokens import kept_token
from understudy.adapters.parents import follow_parent, need_handles, run_and_exit
from understudy.adapters.titles import title
from understudy.gateway.process import PULSE, Seat, grpc_server, run_process
from understudy.gateway.takeover import (
    ControlSocket,
    Takeover,
    give_name,
    hand_over,
    take_name,
    take_over,
)
from understudy.settings.cluster import ClusterConfig
from understudy.settings.gateway import GatewayConfig
from understudy.wire.errors import ConfigError

BACKLOG = 1024
BIND_RETRY_S = 0.02
BIND_TIMEOUT_S = 2.0  # children of a parent that was killed hold the port until they have heard of it
START_TIMEOUT_S = 10.0  # for the first sign of life of a child: it gives none until its loop runs
READY_TIMEOUT_S = 10.0  # for the children of a successor to begin to accept
CONFIG_STATUS = 2  # a child's exit status when its configuration can't work
RESTART_S, RESTART_S_MAX, HEALTHY_S = 0.1, 5.0, 10.0
LATE_S = 0.5  # the parent itself was stopped or starved: it accuses no child
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run_gateway(config: ClusterConfig, name: str) -> None:
    """Serve until SIGTERM or until a successor took over. Raises `ConfigError` if the start can't succeed."""
    logs.configure("gateway", name)
    need_handles()
    limit = descriptors.raise_limit()
    wanted = config.gateway.http.connections_max
    gateway = config.gateway_named(name)
    clients = descriptors.clients_max(wanted, ports=2 if gateway.grpc else 1)
    if clients < wanted:
        structlog.get_logger().warning(
            "gateway.files_limited", limit=limit, connections_max=wanted, connections=clients
        )
    Host(config, gateway).run()


class Child:
    """One serving process as its parent sees it; `pid` is 0 while it is dead."""

    def __init__(self, index: int, name: str, sockets: list[socket.socket]) -> None:
        self.index = index
        self.name = name
        self.sockets = sockets
        self.pid = self.pidfd = self.pulse = 0
        self.accepting = False
        self.started_s = self.heard_s = self.silence_s_max = 0.0
        self.restarts = 0
        self.due_s: float | None = 0.0  # when to start it; None while it runs


class Host:
    """Drives the children of one gateway."""

    def __init__(self, config: ClusterConfig, gateway: GatewayConfig) -> None:
        self._config = config
        self._gateway = gateway
        self._log = structlog.get_logger()
        self._control = ControlSocket(str(Path(config.run_dir) / f"gateway-{gateway.name}.sock"))
        self._selector = selectors.DefaultSelector()
        self._predecessor: socket.socket | None = None
        self._claim: Claim | None = None  # on the name
        self._held: socket.socket | None = None
        self._stopping = False
        self._status = 0

    def run(self) -> None:
        if self._gateway.grpc:
            grpc_server()
        self._secret = kept_token(Path(self._config.data_dir))
        taken = take_over(self._control.path, self._gateway, self._secret)
        if taken is None:
            self._claim_name()
        else:
            self._predecessor = taken.control
        sockets = _listening(self._gateway, taken.sockets if taken is not None else [])
        if self._gateway.grpc:
            shared = taken is not None and self._gateway.grpc == taken.grpc
            self._held = _hold(self._gateway.grpc, shared=shared)
        names = self._gateway.process_names
        self._children = [Child(i, name, sockets[i :: len(names)]) for i, name in enumerate(names)]
        if self._predecessor is None:
            self._open_control()
        self._watch_signals()
        gc.freeze()  # what is shared with the children stays shared
        pause_s = self._config.gateway.pulse_ms / 1000
        began_s = monotonic()
        while not self._stopping or any(child.pid for child in self._children):
            due_s = monotonic() + pause_s
            self._attend(pause_s)
            self._look_after(late=monotonic() > due_s + LATE_S)
            self._keep_control()
            if self._predecessor is not None:
                self._succeed(timed_out=monotonic() > began_s + READY_TIMEOUT_S)
        self._close_control()
        if self._status:
            raise SystemExit(self._status)

    def _attend(self, pause_s: float) -> None:
        """Do what is due; wait for it at most so long."""
        registered = self._selector.get_map()
        for key, _ in self._selector.select(pause_s):
            if registered.get(key.fd) is key:  # a child that ended took its other descriptor along
                key.data()

    # children

    def _look_after(self, *, late: bool) -> None:
        now = monotonic()
        for child in self._children:
            if child.pid and late:
                child.heard_s = now
            elif child.pid and now - child.heard_s > child.silence_s_max:
                self._log.warning("gateway.process_hung", process=child.name, silence_s=child.silence_s_max)
                os.kill(child.pid, signal.SIGKILL)
                child.heard_s = now
            elif child.due_s is not None and now >= child.due_s and not self._stopping:
                self._start(child, now)

    def _start(self, child: Child, now: float) -> None:
        pulse_in, pulse_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        parent_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            os.close(pulse_in)
            run_and_exit(lambda: self._serve(child, pulse_out, parent_pid))
        os.close(pulse_out)
        child.pid, child.pidfd, child.pulse = pid, os.pidfd_open(pid), pulse_in
        child.started_s = child.heard_s = now
        child.silence_s_max = max(START_TIMEOUT_S, self._config.gateway.pulse_timeout_s)
        child.due_s, child.accepting = None, False
        self._selector.register(child.pidfd, selectors.EVENT_READ, lambda: self._ended(child))
        self._selector.register(child.pulse, selectors.EVENT_READ, lambda: self._heard(child))

    def _serve(self, child: Child, pulse: int, parent_pid: int) -> None:
        """In the new process. What it inherited and doesn't need is closed."""
        follow_parent(parent_pid)
        title(f"gateway {child.name} (serving)")
        signal.set_wakeup_fd(-1)
        for number in (*STOP_SIGNALS, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        self._let_go(child)
        seat = Seat(
            child.name,
            child.sockets,
            pulse,
            self._gateway.name,
            taking_over=self._predecessor is not None,
            grpc=self._gateway.grpc,
        )
        try:
            run_process(self._config, seat)
        except ConfigError as error:
            sys.stderr.write(f"error: {error}\n")
            raise SystemExit(CONFIG_STATUS) from error

    def _let_go(self, child: Child) -> None:
        self._selector.close()
        for other in self._children:
            if other.pid:
                os.close(other.pidfd)
                os.close(other.pulse)
            if other is not child:
                for listener in other.sockets:
                    listener.close()
        for held in (self._control.listener, self._predecessor, self._held, self._claim):
            if held is not None:
                held.close()

    def _heard(self, child: Child) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(child.pulse, 4096)
            child.accepting = child.accepting or PULSE in data
        child.heard_s = monotonic()
        child.silence_s_max = self._config.gateway.pulse_timeout_s

    def _ended(self, child: Child) -> None:
        _, wait_status = os.waitpid(child.pid, 0)
        status = os.waitstatus_to_exitcode(wait_status)
        for number in (child.pidfd, child.pulse):
            self._selector.unregister(number)
            os.close(number)
        child.pid = 0
        now = monotonic()
        if self._stopping:
            return
        if status == CONFIG_STATUS and not child.accepting:
            self._status = status
            self._stop()
            return
        child.restarts = 0 if now - child.started_s > HEALTHY_S else child.restarts + 1
        child.due_s = now + (min(RESTART_S * 2**child.restarts, RESTART_S_MAX) if child.restarts else 0.0)
        self._log.warning("gateway.process_died", process=child.name, status=status)

    # signals

    def _watch_signals(self) -> None:
        ours, kernels = socket.socketpair()
        for end in (ours, kernels):
            end.setblocking(False)
        signal.set_wakeup_fd(kernels.fileno())
        for number in (*STOP_SIGNALS, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._signalled(ours.recv(64)))
        self._wakeup = kernels

    def _signalled(self, numbers: bytes) -> None:
        if signal.SIGHUP in numbers:
            logs.reopen()
            self._tell_children(signal.SIGHUP)
        if any(number in numbers for number in STOP_SIGNALS):
            self._stop()

    def _stop(self) -> None:
        self._stopping = True
        if self._claim is not None:
            self._claim.leave()
        self._close_control()
        if self._held is not None:
            self._held.close()
        self._tell_children(signal.SIGTERM)
        for child in self._children:
            for listener in child.sockets:
                listener.close()

    def _tell_children(self, number: signal.Signals) -> None:
        for child in self._children:
            if child.pid:
                os.kill(child.pid, number)

    # takeover, as the successor

    def _succeed(self, *, timed_out: bool) -> None:
        """Once every child accepts, have the former gateway drain."""
        if not all(child.accepting for child in self._children) and not timed_out:
            return
        predecessor, self._predecessor = self._predecessor, None
        assert predecessor is not None
        with contextlib.suppress(OSError):
            self._claim = take_name(predecessor)  # and it has left the control socket's path to us
        predecessor.close()
        if not self._stopping:
            if self._claim is None:
                self._claim_name()
            self._open_control()
            self._log.info("gateway.taken_over", http=self._gateway.http)

    # takeover, as the predecessor

    def _claim_name(self) -> None:
        """Where no file can be made, the port alone keeps others away."""
        try:
            folder = self._config.role_dir("gateway", self._gateway.name)
            self._claim = claim(folder, f"gateway {self._gateway.name!r} runs already")
        except OSError as error:
            self._log.warning("gateway.unclaimed", reason=str(error))

    def _open_control(self) -> None:
        try:
            listener = self._control.open()
        except OSError as error:
            self._log.warning("gateway.unreachable", path=self._control.path, reason=str(error))
        else:
            self._selector.register(listener, selectors.EVENT_READ, lambda: self._hand_over(listener))

    def _close_control(self) -> None:
        if self._control.listener is not None:
            self._selector.unregister(self._control.listener)
            self._control.close()

    def _keep_control(self) -> None:
        if self._control.is_gone:
            self._close_control()
            self._open_control()
            self._log.warning("socket.restored", message=f"{self._control.path} was removed by somebody")

    def _hand_over(self, control: socket.socket) -> None:
        successor, _ = control.accept()

        def give() -> None:
            sockets = [each for child in self._children for each in child.sockets]
            hand_over(successor, self._gateway, sockets)

        Takeover(self._selector, successor, self._secret, give, lambda: self._yield_to(successor))

    def _yield_to(self, successor: socket.socket) -> None:
        if not self._stopping:
            self._log.info("gateway.handed_over", http=self._gateway.http)
            self._stop()
            give_name(successor, self._claim)


def _listening(gateway: GatewayConfig, taken: list[socket.socket]) -> list[socket.socket]:
    """At least one socket for each process: those `taken` over, and new ones on the same port."""
    sockets = list(taken)
    try:
        if not sockets:
            sockets.append(_bound(gateway.http, shared=False))  # whoever has the port already is heard of
        if gateway.processes > 1:
            sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        while len(sockets) < gateway.processes:
            sockets.append(_bound(gateway.http, shared=True))
        for listener in sockets:
            listener.setblocking(False)
            listener.listen(BACKLOG)
    except (OSError, ValueError) as error:
        raise ConfigError(f"gateways: http: can't listen on {gateway.http}: {error}") from error
    return sockets


def _hold(address: str, *, shared: bool) -> socket.socket:
    """Keep gRPC's port, on which its library listens in each child by itself, from other gateways.

    Unless it is `shared` with the gateway that hands over, nobody else may have it. Later it is shared with
    whoever asks to, which are the children and a successor: another gateway first wants it for itself.
    """
    try:
        held = _bound(address, shared=shared)
    except (OSError, ValueError) as error:
        raise ConfigError(f"gateways: grpc: can't listen on {address}: {error}") from error
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # else one that doesn't listen stops nobody
    return held


def _bound(address: str, *, shared: bool) -> socket.socket:
    host, _, port = address.rpartition(":")
    family, _, _, _, where = socket.getaddrinfo(
        host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    due_s = monotonic() + BIND_TIMEOUT_S
    while True:
        try:
            listener.bind(where)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or monotonic() > due_s:
                listener.close()
                raise
            time.sleep(BIND_RETRY_S)
        else:
            return listener
