"""Connections between processes: in order and reliable as TCP's are. Trouble shows as delay or as an end.

A lost packet is sent again, a duplicate or an overtaken one is put right by the kernel: what a machine sees
of all these is time. A cut direction holds what is sent until it heals; one that lasts ends the connection.
What was on its way when a connection ended is lost, and is what peers say again over the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from understudy.adapters.links import SILENCE_MS_MAX
from understudy.sim.clock import Act, Clock, Process

RETRANSMIT_S = 0.2  # Linux's least timeout for a segment
RECONNECT_S = 0.05  # between two dials of an address
BREAK_S = SILENCE_MS_MAX / 1000  # without a sign of the peer's kernel


class End:
    """One end of a connection. `received` and `lost` belong to whoever holds it."""

    def __init__(self, network: Network, process: Process) -> None:
        self.process = process
        self.peer: End
        self.open = True
        self.received: Callable[[Any], None] = lambda _: None
        self.lost: Act = lambda: None
        self.owner: Any = None
        self._network = network
        self._arrives_s = 0.0  # the newest message to this end, so that none overtakes another

    def send(self, message: Any) -> None:
        if self.open:
            self._network.carry(self, partial(self.peer.take, message))

    def take(self, message: Any) -> None:
        if self.open:
            self.process.post(partial(self._take, message))

    def _take(self, message: Any) -> None:
        if self.open:
            self.received(message)

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

    def died(self, power_lost: bool) -> None:
        """Its process did. A kernel that is left says so; else the peer's gives up in the end."""
        if power_lost:
            self.open = False
            self._network.after(BREAK_S, self.peer.end)
        else:
            self.close()


class Network:
    """`loss` and `delay_s` may be changed at any time."""

    def __init__(self, clock: Clock, random: Random) -> None:
        self.delay_s = 0.0002
        self.loss = 0.0
        self._clock = clock
        self._random = random
        self._cuts: dict[tuple[str, str], float] = {}  # direction -> since when
        self._stalled: dict[tuple[str, str], list[tuple[End, Act]]] = {}
        self._dialed: list[End] = []  # the dialers' ends of all connections

    def after(self, delay_s: float, act: Act) -> None:
        self._clock.at(self._clock.now + delay_s, act)

    def connect(self, dialer: Process, listener: Process) -> tuple[End, End] | None:
        """The dialer's and the listener's end; None if the listener isn't there or can't be reached."""
        here, there = dialer.host.name, listener.host.name
        if not listener.alive or listener.host.frozen or (here, there) in self._cuts:
            return None
        if (there, here) in self._cuts:
            return None
        ours, theirs = End(self, dialer), End(self, listener)
        ours.peer, theirs.peer = theirs, ours
        dialer.at_death(ours.died)
        listener.at_death(theirs.died)
        self._dialed = [end for end in self._dialed if end.open or end.peer.open]
        self._dialed.append(ours)
        return ours, theirs

    def carry(self, sender: End, arrive: Act) -> None:
        way = sender.process.host.name, sender.peer.process.host.name
        if way in self._cuts:
            self._stalled.setdefault(way, []).append((sender, arrive))
            return
        self._carry(sender, arrive, self.delay_s * (0.5 + self._random.random()))

    def _carry(self, sender: End, arrive: Act, delay_s: float) -> None:
        while self.loss and self._random.random() < self.loss:
            delay_s += RETRANSMIT_S
        peer = sender.peer
        peer._arrives_s = max(peer._arrives_s, self._clock.now + delay_s)
        self._clock.at(peer._arrives_s, arrive)

    def cut(self, source: str, target: str) -> None:
        """Nothing gets from one host to the other any more; the other direction is a matter of its own."""
        if (source, target) not in self._cuts:
            now = self._cuts[(source, target)] = self._clock.now
            self.after(BREAK_S, lambda: self._give_up(source, target, now))

    def _give_up(self, source: str, target: str, since_s: float) -> None:
        """Data goes one way and its acknowledgement the other, so both kernels miss something."""
        if self._cuts.get((source, target)) != since_s:
            return
        self._stalled.pop((source, target), None)
        for end in self._dialed:
            if {end.process.host.name, end.peer.process.host.name} == {source, target}:
                end.end()
                end.peer.end()

    def heal(self, source: str, target: str) -> None:
        since_s = self._cuts.pop((source, target), None)
        if since_s is None:
            return
        outage_s = self._clock.now - since_s
        for sender, arrive in self._stalled.pop((source, target), []):
            # The pause between two tries has been doubling, so the next one may be as far off again.
            self._carry(sender, arrive, outage_s * self._random.random())

    def heal_all(self) -> None:
        for source, target in list(self._cuts):
            self.heal(source, target)

    def reset(self, random: Random) -> tuple[str, str] | None:
        """End a connection both of whose processes live; the hosts of it. None: there is none."""
        open_ends = [end for end in self._dialed if end.open and end.peer.open]
        if not open_ends:
            return None
        end = random.choice(open_ends)
        end.end()
        end.peer.end()
        return end.process.host.name, end.peer.process.host.name
