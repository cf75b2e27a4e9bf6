"""What goes wrong in a run, kind by kind. It is whole again after a while, or when all is healed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from understudy.sim.clock import Process
from understudy.sim.disks import Disk
from understudy.sim.nodes import SimNode
from understudy.sim.scenario import WALL_ERROR_S, Fault
from understudy.sim.workers import SimWorker

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
        self.world = world
        self._name = name
        self._kind = fault.kind
        self.random = Random(fault.seed)
        self.lasting_s = self.random.choice(LASTING_S)

    def happen(self) -> None:
        KINDS[self._kind](self)

    def tell(self, message: str = "", *, node: str = "", replica: str = "") -> None:
        self.world.tell(f"fault {self._name}", self._kind, message, node=node, replica=replica)

    def later(self, act: Callable[[], None]) -> None:
        self.world.after(self.lasting_s, act)

    def node(self) -> SimNode | None:
        """One that is up."""
        up = [node for node in self.world.nodes.values() if node.agent is not None]
        node = self.random.choice(up) if up else None
        if node is not None:
            self.tell(f"for {self.lasting_s:g} s", node=node.name)
        return node

    def worker(self) -> SimWorker | None:
        found = [(node, w) for node in self.world.nodes.values() for w in node.workers.values()]
        if not found:
            return None
        node, worker = self.random.choice(found)
        self.tell(worker.app or "blank", node=node.name, replica=worker.name)
        return worker

    def role(self) -> tuple[str, Process] | None:
        """A process that isn't a worker."""
        world = self.world
        found = [(node.name, node.agent.process) for node in world.nodes.values() if node.agent is not None]
        found += [(gateway.name, gateway.process) for gateway in world.gateways]
        found += [("c1", world.controller.process)] if world.controller is not None else []
        if not found:
            return None
        name, process = self.random.choice(found)
        self.tell(f"for {self.lasting_s:g} s", node=name)
        return name, process

    def freeze(self, *processes: Process) -> None:
        for process in processes:
            process.pause()
            self.later(process.resume)

    def cut(self, ways: list[tuple[str, str]]) -> None:
        network = self.world.network
        names = ", ".join(f"{source} to {target}" for source, target in ways)
        self.tell(f"nothing gets from {names} for {self.lasting_s:g} s")
        for source, target in ways:
            network.cut(source, target)
            self.later(partial(network.heal, source, target))

    def disk(self) -> Disk:
        world = self.world
        disks = {node.name: node.disk for node in world.nodes.values()}
        disks |= {at.host.name: at.disk for at in world.gateway_hosts}
        name = self.random.choice(sorted(disks))
        self.tell(f"for {self.lasting_s:g} s", node=name)
        self.later(disks[name].be_well)
        return disks[name]


def _kill_worker(strike: Strike) -> None:
    if worker := strike.worker():
        worker.process.kill()


def _freeze_worker(strike: Strike) -> None:
    if worker := strike.worker():
        strike.freeze(worker.process)


def _slow_worker(strike: Strike) -> None:
    if worker := strike.worker():
        worker.slow = strike.random.choice(SLOW)
        strike.later(worker.be_well)


def _fail_worker(strike: Strike) -> None:
    if worker := strike.worker():
        worker.fails = strike.random.choice(FLAKY)
        strike.world.after(FAILING_S, worker.be_well)


def _kill_node(strike: Strike) -> None:
    if node := strike.node():
        node.kill(power_lost=False)
        strike.later(node.start)


def _lose_power(strike: Strike) -> None:
    if node := strike.node():
        node.kill(power_lost=True)
        strike.later(node.start)


def _freeze_node(strike: Strike) -> None:
    if (node := strike.node()) and node.agent is not None:
        node.host.frozen = True
        strike.later(lambda: setattr(node.host, "frozen", False))
        strike.freeze(node.agent.process, *(worker.process for worker in node.workers.values()))


def _kill_role(strike: Strike) -> None:
    found = strike.role()
    if found is not None:
        strike.world.kill(found[0], lasting_s=strike.lasting_s)


def _freeze_role(strike: Strike) -> None:
    found = strike.role()
    if found is not None:
        strike.freeze(found[1])


def _slow_role(strike: Strike) -> None:
    """It gets the processor by turns only."""
    found = strike.role()
    if found is None:
        return
    process, until_s = found[1], strike.world.clock.now + strike.lasting_s

    def stop() -> None:
        if strike.world.clock.now < until_s and strike.world.phase == "faults":
            process.pause()
            strike.world.after(strike.random.uniform(*STUTTER_S), go_on)

    def go_on() -> None:
        process.resume()
        strike.world.after(strike.random.uniform(*STUTTER_S), stop)

    stop()


def _cut(strike: Strike) -> None:
    source, target = strike.random.sample(sorted(strike.world.hosts), 2)
    ways = [(source, target)]
    if strike.random.random() < 0.5:
        ways.append((target, source))
    strike.cut(ways)


def _partition(strike: Strike) -> None:
    """Two parts of the cluster that can't reach each other; one may hold a single host."""
    hosts = sorted(strike.world.hosts)
    strike.random.shuffle(hosts)
    border = strike.random.randint(1, len(hosts) - 1)
    sides = hosts[:border], hosts[border:]
    ways = [(a, b) for a in sides[0] for b in sides[1]]
    strike.cut(ways + [(b, a) for a, b in ways])


def _reset(strike: Strike) -> None:
    hosts = strike.world.network.reset(strike.random)
    if hosts is not None:
        strike.tell(f"between {hosts[0]} and {hosts[1]}")


def _fail_store(strike: Strike) -> None:
    strike.tell(f"for {strike.lasting_s:g} s")
    strike.world.store.fails = True
    strike.later(strike.world.store.be_well)


def _fill_disk(strike: Strike) -> None:
    strike.disk().fails = True


def _slow_disk(strike: Strike) -> None:
    strike.disk().slow = strike.random.choice(SLOW)


def _set_clock(strike: Strike) -> None:
    host = strike.world.hosts[strike.random.choice(sorted(strike.world.hosts))]
    host.wall_error_s = strike.random.uniform(-WALL_ERROR_S, WALL_ERROR_S)
    strike.tell(f"wrong by {host.wall_error_s:.0f} s", node=host.name)


def _lose_store(strike: Strike) -> None:
    """All of it, as with a disk."""
    _replace_store(strike, {}, "empty")


def _restore_store(strike: Strike) -> None:
    _replace_store(strike, strike.world.backup, "as it was before the faults")


def _replace_store(strike: Strike, files: dict[str, bytes], what: str) -> None:
    world = strike.world
    if world.controller is not None:
        strike.tell(f"{what}; the controller is away for {strike.lasting_s:g} s", node=world.controller_host)
        world.kill(world.controller_host, lasting_s=strike.lasting_s)
        world.store.files = dict(files)


KINDS: dict[str, Callable[[Strike], None]] = {
    "worker killed": _kill_worker,
    "worker frozen": _freeze_worker,
    "worker slow": _slow_worker,
    "worker failing": _fail_worker,
    "node killed": _kill_node,
    "power lost": _lose_power,
    "node frozen": _freeze_node,
    "process killed": _kill_role,
    "process frozen": _freeze_role,
    "process slow": _slow_role,
    "network cut": _cut,
    "partition": _partition,
    "connection reset": _reset,
    "store away": _fail_store,
    "store lost": _lose_store,
    "store restored": _restore_store,
    "disk full": _fill_disk,
    "disk slow": _slow_disk,
    "clock set": _set_clock,
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
