"""What a seed stands for: a cluster, its network and a schedule of faults. Any part of it may be left out.

Most runs have some kinds of faults and none of others. Source of the idea: Groce and others, "Swarm
testing" (ISSTA 2012): leaving whole kinds of trouble out of a run reaches states that a mixture of
everything never does.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from random import Random

from understudy.settings.cluster import ClusterConfig, NodeConfig
from understudy.settings.controller import ControllerTuning
from understudy.settings.gateway import AdmissionSettings, GatewayTuning, RetrySettings
from understudy.settings.plan import PlanSettings
from understudy.wire.records import AppVersion, ArtifactRef, Criticality, Profile, Variant

KIND_CHANCE = 0.35  # that a run has faults of a kind at all
PER_S = 0.05, 0.6  # least and most, of a kind that it has
FAULTS_S = 8.0
DELAYS_MS = 0.05, 0.2, 2.0, 10.0
LOSSES = 0.0, 0.0, 0.001, 0.02
BAD_CLIENT, BAD_DATA = "bad", b"bad"  # who sends what no model can take, and how that begins
BAD_FRACTIONS = 0.0, 0.0, 0.0, 0.01, 0.5, 0.9
LOADS_PER_S = 10.0, 20.0, 40.0
DRILLS = "", "", "killed", "power lost", "frozen", "cut off"
DRIFT = 0.01  # of the machines' clocks; good ones stay below 0.0001
WALL_ERROR_S = 3600.0
NOTHING = "nothing"  # in the place of parts, in a command
TICK_MS = 4.0  # twice the default: a gateway that is waiting for answers does little else


@dataclass(frozen=True, slots=True)
class Fault:
    """`seed` decides everything else about it: whom it strikes, and for how long."""

    after_s: float  # the first one may happen
    kind: str
    seed: int


@dataclass(frozen=True, slots=True)
class SimScenario:
    seed: int
    nodes: tuple[NodeConfig, ...]
    apps: tuple[AppVersion, ...]
    gateways: int
    per_s: dict[str, float]  # how often each kind of fault happens
    faults: dict[str, Fault]  # f0, f1, ... in order of time
    requests_per_s: float
    delay_ms: float
    loss: float
    bad_fraction: float  # of the requests: of one client, and nothing that a model can take
    skewed: bool  # the clocks are wrong, each in its own way
    drill: str  # what happens to one node before the faults; the controller is away then: see `drill_alone`
    drill_alone: bool
    reduced: bool = False  # by `only`

    def __str__(self) -> str:
        nodes = ", ".join(f"{n.name} ({n.site}, {n.memory_mb:.0f} MB)" for n in self.nodes)
        apps = ", ".join(f"{a.app} ({a.criticality}, {len(a.variants)} variants)" for a in self.apps)
        kinds = ", ".join(f"{kind} {rate:g}/s" for kind, rate in self.per_s.items()) or "no faults"
        drill = f"; drill: a node is {self.drill}" if self.drill else ""
        return (
            f"{self.seed}: {nodes}; {apps}; {self.gateways} gateway(s); "
            f"{self.requests_per_s:g} requests/s{drill}; {kinds}; {self.loss:.1%} of packets lost, "
            f"{self.delay_ms:g} ms on the way; clocks {'wrong' if self.skewed else 'right'}"
            + (
                f"; {self.bad_fraction:.0%} of the requests are one client's bad data"
                if self.bad_fraction
                else ""
            )
        )

    @property
    def config(self) -> ClusterConfig:
        return ClusterConfig(
            nodes=self.nodes,
            gateway=GatewayTuning(
                tick_ms=TICK_MS,
                # Bounds that so little load can reach.
                admission=AdmissionSettings(waiting_max=12),
                retry=RetrySettings(budget_fraction=0.02, budget_min=2),
            ),
            plan=PlanSettings(method="heuristic"),  # as good in clusters so small, and much sooner
            controller=ControllerTuning(stability_window_s=1.0, stability_window_s_max=4.0),
        )

    @property
    def parts(self) -> tuple[str, ...]:
        """What can be left out; two nodes, an app and a gateway always stay."""
        parts = [*(n.name for n in self.nodes[2:]), *(a.app for a in self.apps[1:])]
        parts += ["g2"] if self.gateways > 1 else []
        parts += [name for name in ("loss", "delay", "skew", "drill", "bad") if self._has(name)]
        return (*parts, *self.faults)

    @property
    def command(self) -> str:
        """That replays it."""
        only = f" --only {','.join(self.parts) or NOTHING}" if self.reduced else ""
        return f"understudy simulate --seed {self.seed}{only}"

    def _has(self, trait: str) -> bool:
        return bool(
            {
                "loss": self.loss,
                "delay": self.delay_ms,
                "skew": self.skewed,
                "drill": self.drill,
                "bad": self.bad_fraction,
            }[trait]
        )

    def only(self, parts: Collection[str]) -> SimScenario:
        """Without every other part."""
        faults = {name: fault for name, fault in self.faults.items() if name in parts}
        kinds = {fault.kind for fault in faults.values()}
        return replace(
            self,
            nodes=(*self.nodes[:2], *(n for n in self.nodes[2:] if n.name in parts)),
            apps=(*self.apps[:1], *(a for a in self.apps[1:] if a.app in parts)),
            gateways=2 if self.gateways > 1 and "g2" in parts else 1,
            per_s={kind: rate for kind, rate in self.per_s.items() if kind in kinds},
            faults=faults,
            loss=self.loss if "loss" in parts else 0.0,
            delay_ms=self.delay_ms if "delay" in parts else 0.0,
            skewed=self.skewed and "skew" in parts,
            bad_fraction=self.bad_fraction if "bad" in parts else 0.0,
            drill=self.drill if "drill" in parts else "",
            reduced=True,
        )


def draw(seed: int, kinds: Collection[str]) -> SimScenario:
    random = Random(seed)
    sites, memory_mb = random.randint(1, 2), random.choice([300.0, 500.0, 900.0])
    nodes = tuple(NodeConfig(f"n{i}", memory_mb, f"s{i % sites}") for i in range(random.randint(2, 5)))
    apps = tuple(_draw_app(random, f"app{i}") for i in range(random.randint(1, 4)))
    per_s = {kind: round(random.uniform(*PER_S), 3) for kind in kinds if random.random() < KIND_CHANCE}
    return SimScenario(
        seed,
        nodes,
        apps,
        gateways=random.choice([1, 1, 2]),
        per_s=per_s,
        faults=_draw_faults(random, per_s),
        requests_per_s=random.choice(LOADS_PER_S),
        delay_ms=random.choice(DELAYS_MS),
        loss=random.choice(LOSSES),
        bad_fraction=Random(f"bad data {seed}").choice(BAD_FRACTIONS),
        skewed=random.random() < 0.5,
        drill=random.choice(DRILLS),
        drill_alone=random.random() < 0.5,
    )


def _draw_app(random: Random, name: str) -> AppVersion:
    variants, size_mb, accuracy = [], random.choice([60.0, 100.0, 180.0]), 0.95
    for index in range(random.randint(1, 3)):
        profile = Profile(40.0, size_mb - 40.0, load_ms=size_mb, latency_ms=2.0 + size_mb / 50)
        artifact = ArtifactRef(f"{name}-{index}", 1000, f"{name}-{index}")
        variants.append(Variant(f"v{index}", "onnx", artifact, accuracy, profile=profile))
        size_mb, accuracy = 40.0 + (size_mb - 40.0) / 2, accuracy - 0.03
    criticality = random.choice([Criticality.CRITICAL, Criticality.STANDARD, Criticality.STANDARD])
    return AppVersion(name, 1, tuple(variants), criticality)


def _draw_faults(random: Random, per_s: dict[str, float]) -> dict[str, Fault]:
    drawn = []
    for kind, rate in per_s.items():
        after_s = random.expovariate(rate)
        while after_s < FAULTS_S:
            drawn.append(Fault(after_s, kind, random.getrandbits(32)))
            after_s += random.expovariate(rate)
    drawn.sort(key=lambda fault: fault.after_s)
    return {f"f{number}": fault for number, fault in enumerate(drawn)}
