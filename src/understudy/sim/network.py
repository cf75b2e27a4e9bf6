"""Connections between processes: in order and reliable as TCP's are. Trouble shows as delay or as an end.

A lost packet is sent again, a duplicate or an overtaken one is put right by the kernel: what a machine sees
of all these is time. A cut direction holds what is sent until it heals; one that lasts ends the connection.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from understudy.sim.clock import Clock, Process

RETRANSMIT_S = 0.2  # Linux's least timeout for a segment
RECONNECT_S = 0.05  # between two dials of an address
BREAK_S = 2.0  # a direction that is cut for so long has ended its connections


class End:
    """One end of a connection. `received` and `lost` belong to whoever holds it."""

    def __init__(self, network: Network, process: Process) -> None:
        self.process = process
        self.peer: End
        self.open = True
        self.received: Callable[[Any], None] = lambda _: None
        self.lost: Callable[[], None] = lambda: None
        self.owner: Any = None
        self._network = network
        self._arrives_s = 0.0  # the newest message to this end, so that none overtakes another

    def send(self, message: Any) -> None:
        if self.open:
            self._network.carry(self, lambda: self.peer.take(message))

    def take(self, message: Any) -> None:
        self.process.post(lambda: self.received(message) if self.open else None)

    def close(self) -> None:
        """The peer hears of it, this end knows."""
        if self.open:
            self.open = False
            self._network.carry(self, self.peer.end)

    def end(self) -> None:
        """The connection is over, as seen from here."""
        if self.open:
            self.open = False
            self.process.post(self.lost)


class Network:
    """`loss` and `delay_s` may be changed at any time."""

    def __init__(self, clock: Clock, random: Random) -> None:
        self.delay_s = 0.0002
        self.loss = 0.0
        self._clock = clock
        self._random = random
        self._cuts: dict[tuple[str, str], float] = {}  # direction -> since when
        self._stalled: dict[tuple[str, str], list[tuple[End, Callable[[], None]]]] = {}

    def connect(self, dialer: Process, listener: Process) -> tuple[End, End] | None:
        """The dialer's and the listener's end; None if the listener isn't there or can't be reached."""
        ways = ((dialer.host, listener.host), (listener.host, dialer.host))
        if not listener.alive or listener.paused or any(way in self._cuts for way in ways):
            return None
        ours, theirs = End(self, dialer), End(self, listener)
        ours.peer, theirs.peer = theirs, ours
        dialer.at_death(ours.close)
        listener.at_death(theirs.close)
        return ours, theirs

    def carry(self, sender: End, arrive: Callable[[], None]) -> None:
        way = sender.process.host, sender.peer.process.host
        if way in self._cuts:
            self._stalled.setdefault(way, []).append((sender, arrive))
            return
        delay_s = self.delay_s * (0.5 + self._random.random())
        while self.loss and self._random.random() < self.loss:
            delay_s += RETRANSMIT_S
        peer = sender.peer
        peer._arrives_s = max(peer._arrives_s, self._clock.now + delay_s)
        self._clock.at(peer._arrives_s, arrive)

    def cut(self, source: str, target: str) -> None:
        """Nothing gets from one host to the other any more; the other direction is a matter of its own."""
        self._cuts.setdefault((source, target), self._clock.now)

    def heal(self, source: str, target: str) -> None:
        since_s = self._cuts.pop((source, target), None)
        if since_s is None:
            return
        broken = self._clock.now - since_s > BREAK_S
        for sender, arrive in self._stalled.pop((source, target), []):
            if broken:
                sender.end()
                sender.peer.end()
            else:
                self.carry(sender, arrive)

    def heal_all(self) -> None:
        for source, target in list(self._cuts):
            self.heal(source, target)
