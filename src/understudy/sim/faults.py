"""What goes wrong in a run, kind by kind. It is whole again after a while, or when all is healed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from understudy.sim.clock import Process
from understudy.sim.disks import Disk
from understudy.sim.nodes import Node
from understudy.sim.scenario import WALL_ERROR_S, Fault
from understudy.sim.workers import Worker

if TYPE_CHECKING:
    from understudy.sim.world import World

LASTING_S = 0.03, 0.2, 1.0, 2.0, 4.0
SLOW = 3.0, 10.0, 100.0, 300.0  # the last: longer than anybody waits
FLAKY = 0.3, 0.6, 1.0  # of the inferences fail
FAILING_S = 4.0  # long enough to be noticed
STUTTER_S = 0.01, 0.15  # least and most that a slow process stands still, and goes on, by turns


class Strike:
    """One fault, happening."""

    def __init__(self, world: World, name: str, fault: Fault) -> None:
        self._world = world
        self._name = name
        self._kind = fault.kind
        self._random = Random(fault.seed)
        self._lasting_s = self._random.choice(LASTING_S)

    def happen(self) -> None:
        KINDS[self._kind](self)

    def _tell(self, message: str = "", *, node: str = "", replica: str = "") -> None:
        self._world.tell(f"fault {self._name}", self._kind, message, node=node, replica=replica)

    def _later(self, act: Callable[[], None]) -> None:
        self._world.after(self._lasting_s, act)

    def _node(self) -> Node | None:
        """One that is up."""
        up = [node for node in self._world.nodes.values() if node.agent is not None]
        node = self._random.choice(up) if up else None
        if node is not None:
            self._tell(f"for {self._lasting_s:g} s", node=node.name)
        return node

    def _worker(self) -> Worker | None:
        found = [(node, w) for node in self._world.nodes.values() for w in node.workers.values()]
        if not found:
            return None
        node, worker = self._random.choice(found)
        self._tell(worker.app or "blank", node=node.name, replica=worker.name)
        return worker

    def _role(self) -> tuple[str, Process] | None:
        """A process that isn't a worker."""
        world = self._world
        found = [(node.name, node.agent.process) for node in world.nodes.values() if node.agent is not None]
        found += [(gateway.name, gateway.process) for gateway in world.gateways]
        found += [("c1", world.controller.process)] if world.controller is not None else []
        if not found:
            return None
        name, process = self._random.choice(found)
        self._tell(f"for {self._lasting_s:g} s", node=name)
        return name, process

    def _freeze(self, *processes: Process) -> None:
        for process in processes:
            process.pause()
            self._later(process.resume)

    # kinds

    def kill_worker(self) -> None:
        if worker := self._worker():
            worker.process.kill()

    def freeze_worker(self) -> None:
        if worker := self._worker():
            self._freeze(worker.process)

    def slow_worker(self) -> None:
        if worker := self._worker():
            worker.slow = self._random.choice(SLOW)
            self._later(worker.be_well)

    def fail_worker(self) -> None:
        if worker := self._worker():
            worker.fails = self._random.choice(FLAKY)
            self._world.after(FAILING_S, worker.be_well)

    def kill_node(self) -> None:
        if node := self._node():
            node.kill(power_lost=False)
            self._later(node.start)

    def lose_power(self) -> None:
        if node := self._node():
            node.kill(power_lost=True)
            self._later(node.start)

    def freeze_node(self) -> None:
        if (node := self._node()) and node.agent is not None:
            node.host.frozen = True
            self._later(lambda: setattr(node.host, "frozen", False))
            self._freeze(node.agent.process, *(worker.process for worker in node.workers.values()))

    def kill_role(self) -> None:
        found = self._role()
        if found is not None:
            self._world.kill(found[0], lasting_s=self._lasting_s)

    def freeze_role(self) -> None:
        found = self._role()
        if found is not None:
            self._freeze(found[1])

    def slow_role(self) -> None:
        """It gets the processor by turns only."""
        found = self._role()
        if found is None:
            return
        process, until_s = found[1], self._world.clock.now + self._lasting_s

        def stop() -> None:
            if self._world.clock.now < until_s and self._world.phase == "faults":
                process.pause()
                self._world.after(self._random.uniform(*STUTTER_S), go_on)

        def go_on() -> None:
            process.resume()
            self._world.after(self._random.uniform(*STUTTER_S), stop)

        stop()

    def cut(self) -> None:
        source, target = self._random.sample(sorted(self._world.hosts), 2)
        ways = [(source, target)]
        if self._random.random() < 0.5:
            ways.append((target, source))
        self._cut(ways)

    def partition(self) -> None:
        """Two parts of the cluster that can't reach each other; one may hold a single host."""
        hosts = sorted(self._world.hosts)
        self._random.shuffle(hosts)
        border = self._random.randint(1, len(hosts) - 1)
        sides = hosts[:border], hosts[border:]
        ways = [(a, b) for a in sides[0] for b in sides[1]]
        self._cut(ways + [(b, a) for a, b in ways])

    def _cut(self, ways: list[tuple[str, str]]) -> None:
        network = self._world.network
        names = ", ".join(f"{source} to {target}" for source, target in ways)
        self._tell(f"nothing gets from {names} for {self._lasting_s:g} s")
        for source, target in ways:
            network.cut(source, target)
            self._later(partial(network.heal, source, target))

    def reset(self) -> None:
        hosts = self._world.network.reset(self._random)
        if hosts is not None:
            self._tell(f"between {hosts[0]} and {hosts[1]}")

    def fail_store(self) -> None:
        self._tell(f"for {self._lasting_s:g} s")
        self._world.store.fails = True
        self._later(self._world.store.be_well)

    def fill_disk(self) -> None:
        self._disk().fails = True

    def slow_disk(self) -> None:
        self._disk().slow = self._random.choice(SLOW)

    def _disk(self) -> Disk:
        world = self._world
        disks = {node.name: node.disk for node in world.nodes.values()}
        disks |= {at.host.name: at.disk for at in world.gateway_hosts}
        name = self._random.choice(sorted(disks))
        self._tell(f"for {self._lasting_s:g} s", node=name)
        self._later(disks[name].be_well)
        return disks[name]

    def set_clock(self) -> None:
        host = self._world.hosts[self._random.choice(sorted(self._world.hosts))]
        host.wall_error_s = self._random.uniform(-WALL_ERROR_S, WALL_ERROR_S)
        self._tell(f"wrong by {host.wall_error_s:.0f} s", node=host.name)


def _lose_store(strike: Strike) -> None:
    """All of it, as with a disk."""
    _replace_store(strike, {}, "empty")


def _restore_store(strike: Strike) -> None:
    _replace_store(strike, strike._world.backup, "as it was before the faults")


def _replace_store(strike: Strike, files: dict[str, bytes], what: str) -> None:
    world = strike._world
    if world.controller is not None:
        strike._tell(
            f"{what}; the controller is away for {strike._lasting_s:g} s", node=world.controller_host
        )
        world.kill(world.controller_host, lasting_s=strike._lasting_s)
        world.store.files = dict(files)


KINDS: dict[str, Callable[[Strike], None]] = {
    "worker killed": Strike.kill_worker,
    "worker frozen": Strike.freeze_worker,
    "worker slow": Strike.slow_worker,
    "worker failing": Strike.fail_worker,
    "node killed": Strike.kill_node,
    "power lost": Strike.lose_power,
    "node frozen": Strike.freeze_node,
    "process killed": Strike.kill_role,
    "process frozen": Strike.freeze_role,
    "process slow": Strike.slow_role,
    "network cut": Strike.cut,
    "partition": Strike.partition,
    "connection reset": Strike.reset,
    "store away": Strike.fail_store,
    "store lost": _lose_store,
    "store restored": _restore_store,
    "disk full": Strike.fill_disk,
    "disk slow": Strike.slow_disk,
    "clock set": Strike.set_clock,
}


def heal(world: World) -> None:
    """Everything that is broken."""
    world.tell("sim", "healed", "nothing breaks from here on")
    world.network.heal_all()
    world.network.loss = 0.0
    world.store.be_well()
    world.start_controller()
    for at in world.gateway_hosts:
        at.disk.be_well()
        at.start()
    for node in world.nodes.values():
        node.host.frozen = False
        node.disk.be_well()
        node.start()
    for process in world.processes:
        process.heal()
    for node in world.nodes.values():
        for worker in list(node.workers.values()):
            worker.be_well()
            worker.process.heal()  # and does what it was told meanwhile: to end, perhaps
