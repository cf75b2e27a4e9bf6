"""Contingencies on a node: what is started first, what follows, what is refused, when it is over."""

from __future__ import annotations

from agent_world import World, app, contingency, crashed, load_failed, loaded, of, variant, wanted

from understudy.core.agent import events as ev
from understudy.wire.records import Role


def standing_by(memory_mb: float = 1000.0) -> World:
    world = World(memory_mb=memory_mb).start()
    world.target()
    world.stage()
    return world


def answer(effects: list[ev.Effect]) -> tuple[bool, str]:
    (effect,) = of(ev.AnswerActivate, effects)
    return effect.activated.accepted, effect.activated.reason


def test_the_small_variant_answers_first_and_the_wanted_one_replaces_it() -> None:
    world = standing_by()
    world.loads = False
    assert answer(world.activate()) == (True, "")
    assert world.states() == {"small": "loading"}
    small = world.only()
    assert (small.role, small.activation) == (Role.CONTINGENCY, "digits/node:n2")
    world.step(loaded(small.id))
    assert world.states() == {"small": "ready", "full": "loading"}
    world.step(loaded(next(r.id for r in world.replicas if r.variant == "full")))
    assert world.states() == {"full": "ready"}
    assert ev.DrainWorker(small.id, world.tuning.drain_timeout_ms) in world.effects


def test_larger_variants_wait_until_every_app_answers() -> None:
    world = World().start()
    world.loads = False
    world.target(apps=(app("digits"), app("faces")))
    world.stage()
    world.activate(contingency("digits"))
    world.activate(contingency("faces"))
    digits, faces = (next(r.id for r in world.replicas if r.app == name) for name in ("digits", "faces"))
    world.step(loaded(digits))
    assert {(r.app, r.variant) for r in world.replicas} == {("digits", "small"), ("faces", "small")}
    world.step(loaded(faces))
    assert {r.app for r in world.replicas if r.variant == "full"} == {"digits", "faces"}
    brief = {(e.app.app, e.variant.name): e.brief for e in of(ev.LoadWorker, world.effects)}
    assert brief == {
        (name, size): size == "small" for name in ("digits", "faces") for size in ("small", "full")
    }


def test_a_first_answer_that_fails_to_load_holds_nobody_up() -> None:
    world = World().start()
    world.loads = False
    world.target(apps=(app("digits"), app("faces")))
    world.stage()
    world.activate(contingency("digits"))
    world.activate(contingency("faces"))
    digits, faces = (next(r.id for r in world.replicas if r.app == name) for name in ("digits", "faces"))
    world.step(loaded(digits))
    world.step(load_failed(faces))
    assert ("digits", "full") in {(r.app, r.variant) for r in world.replicas}


def test_the_load_is_the_first_effect() -> None:
    world = standing_by()
    world.loads = False
    first = world.activate()[0]
    assert isinstance(first, ev.LoadWorker), "nothing may come before the recovery itself"


def test_the_small_step_is_skipped_when_the_wanted_one_loads_as_fast() -> None:
    world = World().start()
    apps = (app(variants=(variant("full", 100.0, 20.0), variant("small", 45.0, 8.0))),)
    world.target(apps=apps)
    world.stage()
    world.activate()
    assert [e.variant.name for e in of(ev.LoadWorker, world.effects)] == ["full"]


def test_activation_is_idempotent() -> None:
    world = standing_by()
    world.loads = False
    for token in (1, 2, 3):
        assert answer(world.activate(token=token)) == (True, "")
    assert answer(world.activate(contingency(failure="site:s2"))) == (True, "")
    assert len(of(ev.LoadWorker, world.effects)) == 1


def test_a_ready_replica_of_the_app_is_enough() -> None:
    world = standing_by()
    world.target(wanted("small"), revision=2)
    before = len(of(ev.LoadWorker, world.effects))
    assert answer(world.activate()) == (True, "")
    assert len(of(ev.LoadWorker, world.effects)) == before


def test_an_activation_survives_targets_that_do_not_mention_it_and_the_agent() -> None:
    world = standing_by()
    world.activate()
    world.target(revision=2)
    assert world.states() == {"full": "ready"}
    reborn = World(saved=of(ev.Save, world.effects)[-1].saved).start()
    assert reborn.only().activation == "digits/node:n2"
    reborn.target(revision=3, released=("digits/node:n2",))
    assert reborn.replicas == ()


def test_a_target_that_wants_the_same_takes_the_replica_over() -> None:
    world = standing_by()
    world.activate()
    before = world.only()
    world.target(wanted(), revision=2)
    assert (world.only().id, world.only().role, world.only().activation) == (before.id, Role.PRIMARY, "")
    world.target(revision=3)
    assert world.replicas == (), "it is the target's now, and the target has dropped it"


def test_the_small_one_stays_until_the_target_that_took_over_is_ready() -> None:
    world = standing_by()
    world.loads = False
    world.activate()
    world.step(loaded(world.only().id))
    world.target(wanted(), revision=2)
    assert world.states() == {"small": "ready", "full": "loading"}
    world.step(loaded(next(r.id for r in world.replicas if r.variant == "full")))
    assert world.states() == {"full": "ready"}


def test_the_small_one_serves_on_while_the_wanted_one_does_not_fit() -> None:
    world = standing_by(memory_mb=120.0)
    assert answer(world.activate()) == (True, "")
    assert world.states() == {"small": "ready", "full": "backoff"}


def test_a_wanted_one_that_crash_loops_leaves_the_small_one_serving() -> None:
    world = standing_by()
    world.loads = False
    world.activate()
    world.step(loaded(world.only().id))
    for _ in range(world.tuning.crash_loop_count):
        world.advance(0.49)
        world.step(crashed(next(r.id for r in world.replicas if r.variant == "full")))
    assert world.states() == {"small": "ready", "full": "quarantined"}


def test_refusals_say_why() -> None:
    nothing = World().start()
    assert answer(nothing.activate()) == (False, "this node has no target yet")
    world = World(memory_mb=30.0).start()
    world.target()
    assert answer(world.activate()) == (False, "its artifact is not staged on this node")
    world.stage()
    assert answer(world.activate()) == (False, "memory: needs 45 MB, 30 MB free")
    assert answer(world.activate(contingency(version=9)))[1] == "version 9 of digits is unknown here"
    assert answer(world.activate(contingency(first="tiny")))[1] == "digits has no variant tiny or full"
    quarantined = (("digits", 1, "full"), ("digits", 1, "small"))
    world.target(revision=2, quarantined=quarantined)
    assert answer(world.activate()) == (False, "quarantined")
    assert world.told().count("activation.refused") == 5


def test_a_quarantined_variant_is_left_out_of_a_contingency() -> None:
    world = standing_by()
    world.target(revision=2, quarantined=(("digits", 1, "full"),))
    assert answer(world.activate()) == (True, "")
    assert world.states() == {"small": "ready"}
