"""Variants with packages of their own, as an agent's machine runs them."""

from __future__ import annotations

from typing import Any

import msgspec
from tests.unit.agent_world import World, app, contingency, variant

from understudy.core.agent import events as ev
from understudy.core.agent.blanks import BlankPool
from understudy.core.agent.pools import Pools
from understudy.settings.agent import AgentTuning
from understudy.wire.messages import Activate, Target, TargetReplica
from understudy.wire.records import AppVersion, ArtifactRef, Environment, Role

WHEELS = Environment(ArtifactRef("digest-of-wheels", 1000, "requirements.txt.tar", "tar"))
KEY = WHEELS.key


def packed() -> AppVersion:
    """Its full-size variant needs packages; the smaller one doesn't."""
    full = msgspec.structs.replace(variant("full", 100.0, 80.0), environment=WHEELS)
    return app(variants=(full, variant("small", 45.0, 8.0)))


def of(kind: type, effects: list[ev.Effect]) -> list[Any]:
    return [effect for effect in effects if isinstance(effect, kind)]


def replica(name: str) -> TargetReplica:
    return TargetReplica("digits", 1, name, Role.PRIMARY)


def test_a_replica_waits_for_its_environment_and_is_forked_from_it() -> None:
    world = World().start()
    world.stage()
    effects = world.target(replica("full"), apps=(packed(),))
    assert ev.HaveEnvironments((WHEELS,)) in effects
    assert ev.KeepZygotes(frozenset({KEY})) in effects
    assert world.states() == {"full": "backoff"}
    world.step(ev.EnvironmentChanged(KEY, "it is being built"))
    effects = world.step(ev.EnvironmentChanged(KEY, ""))
    assert [fork.environment for fork in of(ev.ForkWorker, effects)] == [KEY]
    assert world.states() == {"full": "ready"}
    assert world.machine.state.environments == {KEY: ""}


def test_a_contingency_with_packages_of_its_own_has_one_worker_ready_for_it() -> None:
    world = World().start()
    world.stage()
    world.step(ev.EnvironmentChanged(KEY, ""))
    only = contingency(first="full", final="full")
    target = Target(1, (packed(),), (), (only,))
    effects = world.step(ev.TargetReceived(target))
    assert [fork.environment for fork in of(ev.ForkWorker, effects)] == [KEY]
    asked = world.step(ev.ActivateAsked(Activate(only, 1), 1))
    assert of(ev.LoadWorker, asked)[0].variant.name == "full"  # without a fork before it
    assert world.states() == {"full": "ready"}


def test_without_a_contingency_nobody_waits_in_an_environment_and_its_zygote_may_end() -> None:
    world = World().start()
    world.stage()
    world.step(ev.EnvironmentChanged(KEY, ""))
    only = contingency(first="full", final="full")
    forks = of(ev.ForkWorker, world.step(ev.TargetReceived(Target(1, (packed(),), (), (only,)))))
    effects = world.target(apps=(packed(),), revision=2)
    assert of(ev.KillWorker, effects) == [ev.KillWorker(forks[0].worker)]
    assert ev.KeepZygotes(frozenset()) in effects
    assert not of(ev.ForkWorker, world.advance(60.0))


def test_an_activation_takes_what_is_ready_here() -> None:
    world = World().start()
    world.stage()
    world.target(apps=(packed(),))
    effects = world.activate(contingency(first="full", final="full"))
    refusal = of(ev.AnswerActivate, effects)[0].activated
    assert (refusal.accepted, refusal.reason) == (False, "its environment is not ready on this node")
    world.step(ev.EnvironmentChanged(KEY, ""))
    effects = world.activate(contingency(first="full", final="full"))
    assert of(ev.AnswerActivate, effects)[0].activated.accepted


def test_an_environment_that_failed_is_told_and_harms_nobody_else() -> None:
    world = World().start()
    world.stage()
    world.step(ev.EnvironmentChanged(KEY, "numpy-9-cp27.whl is not for this node's Python"))
    world.target(replica("full"), replica("small"), apps=(packed(),))
    world.advance(60.0)
    assert world.states() == {"full": "backoff", "small": "ready"}
    assert "numpy-9-cp27.whl" in next(r.detail for r in world.replicas if r.variant == "full")
    assert world.machine.state.environments == {KEY: "numpy-9-cp27.whl is not for this node's Python"}
    assert world.machine.state.trouble == ()


def test_workers_of_a_former_life_go_back_to_their_pool() -> None:
    pools = Pools(AgentTuning(), lambda *_: 0.0)
    pools.add("w1", 1, "unix:w1", 0.0, KEY)
    assert pools.take("") is None
    assert pools.take(KEY) is not None


def test_a_forked_worker_belongs_to_the_pool_that_asked_for_it() -> None:
    pools = Pools(AgentTuning(), lambda *_: 0.0)
    [fork] = pools.refill({KEY: 1}, frozenset(), 0.0, lambda: "w1", spare=False)
    assert fork == ev.ForkWorker("w1", KEY)
    pools.add("w1", 1, "unix:w1", 0.0)
    assert pools.take("") is None
    assert pools.take(KEY) is not None
    assert not BlankPool(AgentTuning(), lambda *_: 0.0)  # an empty one is false: never test one for truth
