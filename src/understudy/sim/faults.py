"""What goes wrong in a run: a swarm of faults, of which most runs have some kinds and none of others.

Source of the idea: Groce and others, "Swarm testing" (ISSTA 2012): leaving whole kinds of trouble out of a
run reaches states that a mixture of everything never does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from understudy.sim.clock import Act, Process
from understudy.sim.workers import Worker

if TYPE_CHECKING:
    from understudy.sim.world import World

KIND_CHANCE = 0.4  # that a run has faults of a kind at all
PER_S = 0.05, 0.6
LASTING_S = 0.03, 0.2, 1.0, 3.0
SLOW = 3.0, 10.0, 100.0
DELAYS_MS = 0.05, 0.2, 2.0, 10.0
LOSSES = 0.0, 0.0, 0.001, 0.02


@dataclass(frozen=True, slots=True)
class Swarm:
    """How often each kind of fault happens in a run, per s, and how good its network is."""

    per_s: dict[str, float]
    loss: float
    delay_ms: float

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {rate:g}/s" for kind, rate in self.per_s.items()) or "no faults"
        return f"{kinds}; {self.loss:.1%} of packets lost, {self.delay_ms:g} ms on the way"


def draw(random: Random) -> Swarm:
    per_s = {kind: round(random.uniform(*PER_S), 3) for kind in KINDS if random.random() < KIND_CHANCE}
    return Swarm(per_s, random.choice(LOSSES), random.choice(DELAYS_MS))


class Faults:
    """Strikes at random moments between `begin` and `end`; what it broke is whole again by itself or then."""

    def __init__(self, world: World, swarm: Swarm) -> None:
        self._world = world
        self._random = world.random
        self._swarm = swarm
        self._over = False

    def begin(self) -> None:
        for kind, per_s in self._swarm.per_s.items():
            self._next(KINDS[kind], per_s)

    def end(self) -> None:
        """Heal everything."""
        self._over = True
        world = self._world
        world.tell("sim", "healed", "nothing breaks from here on")
        world.network.heal_all()
        world.network.loss = 0.0
        world.restore_store()
        world.start_controller()
        world.gateway.process.resume()
        for node in world.nodes.values():
            if node.agent is None:
                node.start()
            else:
                node.agent.process.resume()
            for worker in list(node.workers.values()):
                worker.be_well()
                worker.process.resume()  # and does what it was told meanwhile: to end, perhaps

    def _next(self, strike: Callable[[Faults], None], per_s: float) -> None:
        def act() -> None:
            if not self._over:
                strike(self)
                self._next(strike, per_s)

        self._world.after(self._random.expovariate(per_s), act)

    def _later(self, act: Act) -> None:
        self._world.after(self._random.choice(LASTING_S), act)

    def _freeze(self, *processes: Process) -> None:
        for process in processes:
            process.pause()
            self._later(process.resume)

    # kinds

    def _worker(self, what: str) -> Worker | None:
        found = [(node, w) for node in self._world.nodes.values() for w in node.workers.values()]
        if not found:
            return None
        node, worker = self._random.choice(found)
        self._world.tell(
            "fault", f"worker {what}", worker.app or "blank", node=node.name, replica=worker.name
        )
        return worker

    def kill_worker(self) -> None:
        if worker := self._worker("killed"):
            worker.process.kill()

    def freeze_worker(self) -> None:
        if worker := self._worker("frozen"):
            self._freeze(worker.process)

    def slow_worker(self) -> None:
        if worker := self._worker("slow"):
            worker.slow = self._random.choice(SLOW)
            self._later(worker.be_well)

    def fail_worker(self) -> None:
        if worker := self._worker("failing"):
            worker.fails = True
            self._later(worker.be_well)

    def lose_node(self) -> None:
        node = self._random.choice(list(self._world.nodes.values()))
        if node.agent is not None:
            self._world.tell("fault", "node lost", "", node=node.name)
            node.crash()
            self._later(node.start)

    def freeze_node(self) -> None:
        node = self._random.choice(list(self._world.nodes.values()))
        if node.agent is not None:
            self._world.tell("fault", "node frozen", "", node=node.name)
            self._freeze(node.agent.process, *(worker.process for worker in node.workers.values()))

    def kill_agent(self) -> None:
        node = self._random.choice(list(self._world.nodes.values()))
        if node.agent is not None:
            self._world.tell("fault", "agent killed", "", node=node.name)
            node.kill_agent()
            self._later(node.start)

    def kill_controller(self) -> None:
        if self._world.controller is not None:
            self._world.tell("fault", "controller killed", "")
            self._world.kill_controller()
            self._later(self._world.start_controller)

    def kill_gateway(self) -> None:
        self._world.tell("fault", "gateway killed", "it starts again at once")
        self._world.restart_gateway()

    def freeze_gateway(self) -> None:
        self._world.tell("fault", "gateway frozen", "")
        self._freeze(self._world.gateway.process)

    def cut(self) -> None:
        network = self._world.network
        source, target = self._random.sample(self._world.hosts, 2)
        ways = [(source, target)]
        if self._random.random() < 0.5:
            ways.append((target, source))
        for way in ways:
            self._world.tell("fault", "network cut", f"nothing gets from {way[0]} to {way[1]}")
            network.cut(*way)
        for source, target in ways:
            self._later(partial(network.heal, source, target))

    def lose_store(self) -> None:
        self._world.tell("fault", "store away", "")
        self._world.store_away = True
        self._later(self._world.restore_store)


KINDS: dict[str, Callable[[Faults], None]] = {
    "worker killed": Faults.kill_worker,
    "worker frozen": Faults.freeze_worker,
    "worker slow": Faults.slow_worker,
    "worker failing": Faults.fail_worker,
    "node lost": Faults.lose_node,
    "node frozen": Faults.freeze_node,
    "agent killed": Faults.kill_agent,
    "controller killed": Faults.kill_controller,
    "gateway killed": Faults.kill_gateway,
    "gateway frozen": Faults.freeze_gateway,
    "network cut": Faults.cut,
    "store away": Faults.lose_store,
}
