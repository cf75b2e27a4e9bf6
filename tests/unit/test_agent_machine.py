"""The agent's decisions in virtual time: starting, restarting, probing, matching, stopping."""

from __future__ import annotations

import msgspec
import pytest
from agent_world import World, app, crashed, load_failed, loaded, of, variant, wanted

from understudy.core.agent import events as ev
from understudy.core.agent.replicas import REQUESTS_MARGIN, request_memory_mb
from understudy.core.agent.vitality import Signs
from understudy.settings.agent import AgentTuning
from understudy.wire.errors import Code
from understudy.wire.messages import WorkerStats
from understudy.wire.records import Role


def running(name: str = "full", **options: object) -> World:
    deadline_ms = options.pop("deadline_ms", 1000.0)
    world = World(**options).start()  # type: ignore[arg-type]
    world.target(wanted(name), apps=(msgspec.structs.replace(app(), deadline_ms=deadline_ms),))
    return world


def test_blank_workers_are_kept_ready_and_refilled() -> None:
    world = World().start()
    assert world.machine.state.blank_workers == world.tuning.blank_workers
    world.target(wanted())
    assert world.states() == {"full": "ready"}
    assert world.machine.state.blank_workers == world.tuning.blank_workers


def test_no_two_nodes_give_their_workers_the_same_name() -> None:
    worlds = [World(), World(node="n2")]
    names = [fork.worker for world in worlds for fork in of(ev.ForkWorker, world.start().effects)]
    assert len(names) == len(set(names)) > 1, "although both started within the same millisecond"


def test_a_replica_waits_for_a_worker_when_the_pool_is_empty() -> None:
    world = World()
    world.forks = False
    world.start()
    world.target(wanted())
    assert world.only().state == "starting"
    asked = of(ev.ForkWorker, world.effects)
    assert len(asked) == world.tuning.blank_workers + 1
    world.step(ev.WorkerBlank(asked[0].worker, 1, "unix:/a"))
    assert world.only().state == "ready"


def test_each_change_is_published_with_a_higher_serial_and_no_change_is_not() -> None:
    world = running()
    serials = [effect.state.serial for effect in of(ev.Publish, world.effects)]
    assert serials == sorted(set(serials))
    assert not of(ev.Publish, world.step(ev.Tick()))


def test_the_role_is_a_label_that_changes_without_a_restart() -> None:
    world = running()
    before = world.only()
    effects = world.target(wanted(role=Role.STANDBY), revision=2)
    assert not of(ev.LoadWorker, effects)
    assert (world.only().pid, world.only().role) == (before.pid, Role.STANDBY)


def test_an_older_target_is_ignored() -> None:
    world = World().start()
    world.target(wanted(), revision=5)
    world.target(revision=4)
    assert world.states() == {"full": "ready"}
    assert world.machine.state.target_revision == 5


def test_unwanted_replicas_are_drained_and_killed_when_they_take_too_long() -> None:
    world = running()
    world.exits = False
    worker = world.only().id
    effects = world.target(revision=2)
    assert of(ev.DrainWorker, effects) == [ev.DrainWorker(worker, world.tuning.drain_timeout_ms)]
    assert world.only().state == "draining"
    assert not of(ev.KillWorker, world.advance(world.tuning.drain_timeout_ms / 1000))
    assert of(ev.KillWorker, world.advance(1.0)) == [ev.KillWorker(worker)]
    world.step(crashed(worker))
    assert world.replicas == ()
    assert "worker.crashed" not in world.told()


def test_a_successor_on_the_same_node_is_ready_before_the_old_one_goes() -> None:
    world = running()
    world.loads = False
    new = app(version=2)
    world.target(wanted(version=2), apps=(app(), new), revision=2)
    assert {(r.version, r.state) for r in world.replicas} == {(1, "ready"), (2, "loading")}
    world.step(loaded(next(r.id for r in world.replicas if r.version == 2)))
    assert {(r.version, r.state) for r in world.replicas} == {(2, "ready")}


def test_a_successor_that_waits_for_the_memory_of_the_old_one_gets_it() -> None:
    world = running(memory_mb=150.0)
    world.target(wanted(version=2), apps=(app(), app(version=2)), revision=2)
    assert [(r.version, r.state) for r in world.replicas] == [(2, "ready")]


def test_what_does_not_fit_says_so_and_starts_when_memory_is_free() -> None:
    world = running(memory_mb=120.0)
    world.target(wanted(), wanted("small"), revision=2)
    small = next(r for r in world.replicas if r.variant == "small")
    assert small.state == "backoff"
    assert small.detail == "memory: needs 45 MB, 20 MB free"
    assert world.machine.due_s > world.now, "it waits for memory, not for time"
    world.target(wanted("small"), revision=3)
    assert world.states() == {"small": "ready"}


def test_memory_is_reserved_by_the_decision_to_start() -> None:
    world = World(memory_mb=150.0)
    world.forks = False
    world.start()
    world.target(wanted(), wanted())
    assert sorted(r.state for r in world.replicas) == ["backoff", "starting"]


def test_limits_come_from_the_variant_the_profile_or_the_node() -> None:
    declared = variant("declared", 60.0)
    declared = type(declared)(**{**_fields(declared), "memory_limit_mb": 77.0})
    apps = (app(variants=(declared, variant("big", 400.0), variant("new", 60.0, measured=False))),)
    world = World(memory_mb=2000.0).start()
    world.target(wanted("declared"), wanted("big"), wanted("new"), apps=apps)
    limits = {effect.variant.name: effect.limit_mb for effect in of(ev.LoadWorker, world.effects)}
    requests = REQUESTS_MARGIN * AgentTuning().request_memory_mb
    assert limits == {"declared": 77.0, "big": 800.0 + requests, "new": 2000.0}


def test_requests_get_what_a_declared_limit_leaves() -> None:
    tuning = AgentTuning()
    plain = variant("plain", 60.0)
    assert request_memory_mb(plain, tuning) == tuning.request_memory_mb
    assert plain.profile is not None
    limit = plain.profile.replica_mb + 30
    declared = type(plain)(**{**_fields(plain), "memory_limit_mb": limit})
    assert request_memory_mb(declared, tuning) == max(30, limit / 4) / REQUESTS_MARGIN


def _fields(record: object) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__struct_fields__}  # type: ignore[attr-defined]


# Crashes


def test_the_first_restart_is_at_once_and_later_ones_back_off() -> None:
    world = running()
    first = world.only()
    world.step(crashed(first.id))
    assert world.only().state == "ready"
    assert world.only().restarts == 1
    assert world.only().id != first.id
    world.step(crashed(world.only().id, jitter=1.0))
    assert world.only().state == "backoff"
    delay_s = world.tuning.backoff_ms / 1000 * (1 + world.tuning.backoff_jitter_fraction)
    assert world.machine.due_s == pytest.approx(world.now + delay_s)
    world.advance(delay_s)
    assert world.only().state == "ready"


def test_crashes_far_apart_never_add_up() -> None:
    world = running()
    for _ in range(20):
        world.step(crashed(world.only().id))
        assert world.only().state == "ready"
        world.advance(world.tuning.crash_loop_window_s + 1)


def crash_loop(world: World) -> None:
    for _ in range(world.tuning.crash_loop_count):
        world.advance(1.0)
        world.step(crashed(world.only().id))


def test_a_crash_loop_quarantines_the_variant_until_the_controller_lifts_it() -> None:
    world = running()
    crash_loop(world)
    key = ("digits", 1, "full")
    assert world.only().state == "quarantined"
    assert world.machine.state.quarantined == (key,)
    assert world.told().count("variant.quarantined") == 1
    world.target(wanted(), revision=2)
    assert world.only().state == "quarantined", "a controller that doesn't know yet changes nothing"
    world.target(wanted("small"), revision=3, quarantined=(key,))
    assert world.states() == {"small": "ready"}
    world.target(wanted(), revision=4, quarantined=(key,))
    assert world.states() == {"small": "ready", "full": "quarantined"}
    world.target(wanted(), revision=5)
    assert world.machine.state.quarantined == ()
    assert world.states() == {"full": "ready"}


def test_crashes_that_a_request_is_guilty_of_do_not_add_up_to_a_loop() -> None:
    world = running()
    for _ in range(3 * world.tuning.crash_loop_count):
        worker = world.only().id
        world.step(crashed(worker))
        world.step(ev.CrashesExcused((worker, "somebody's")))
        assert world.only().state == "ready", "and it is started at once"
    assert world.machine.state.quarantined == ()


def test_a_pause_that_only_a_guilty_request_was_the_reason_of_ends_with_its_verdict() -> None:
    world = running()
    workers = []
    for _ in range(world.tuning.crash_loop_count):
        world.advance(1.0)
        workers.append(world.only().id)
        world.step(crashed(workers[-1]))
    assert world.only().state == "quarantined"
    world.step(ev.CrashesExcused(tuple(workers[-2:])))
    assert world.states() == {"full": "ready"}


def test_a_variant_quarantined_elsewhere_is_not_started() -> None:
    world = World().start()
    world.target(wanted(), quarantined=(("digits", 1, "full"),))
    assert world.only().state == "quarantined"
    assert not of(ev.LoadWorker, world.effects)


def test_failures_to_load_count_as_crashes_of_the_variant() -> None:
    world = running(tuning=AgentTuning(crash_loop_count=2))
    world.loads = False
    world.step(crashed(world.only().id))
    world.step(load_failed(world.only().id))
    assert world.only().state == "quarantined"


def test_a_store_that_is_away_quarantines_nothing() -> None:
    world = World(tuning=AgentTuning(crash_loop_count=2))
    world.loads = False
    world.start()
    world.target(wanted())
    for _ in range(10):
        world.step(load_failed(world.only().id, Code.ARTIFACT_MISSING))
        assert world.only().state in ("backoff", "loading")
        world.advance(20.0)
    assert world.only().state == "loading"


def test_out_of_memory_is_told_as_such() -> None:
    world = running()
    world.step(ev.WorkerExited(world.only().id, "killed for exceeding its memory limit", out_of_memory=True))
    assert "worker.out_of_memory" in world.told()
    assert "worker.crashed" not in world.told()


def test_blank_workers_that_cannot_be_made_back_off() -> None:
    world = World()
    world.forks = False
    effects = world.start().effects
    asked = len(of(ev.ForkWorker, effects))
    for _ in range(5):
        for fork in of(ev.ForkWorker, list(world.effects)):
            world.step(crashed(fork.worker))
        world.advance(0.01)
    assert len(of(ev.ForkWorker, world.effects)) < 5 * asked


# Probes


def test_every_replica_is_probed_each_interval() -> None:
    world = running()
    worker = world.only().id
    for _ in range(3):
        effects = world.advance(world.tuning.probe_interval_ms / 1000)
        assert of(ev.ProbeWorker, effects) == [ev.ProbeWorker(worker)]
        world.step(ev.ProbePassed(worker))


def test_a_failed_probe_takes_the_replica_out_at_once_and_a_passed_one_brings_it_back() -> None:
    world = running()
    worker = world.only().id
    world.advance(world.tuning.probe_interval_ms / 1000)
    effects = world.step(ev.ProbeFailed(worker, "no reply"))
    assert of(ev.Publish, effects)
    assert (world.only().state, world.only().detail) == ("failing", "no reply")
    world.advance(world.tuning.probe_interval_ms / 1000)
    world.step(ev.ProbePassed(worker))
    assert (world.only().state, world.only().detail) == ("ready", "")


def test_a_replica_that_keeps_failing_is_killed_and_replaced() -> None:
    world = running()
    worker = world.only().id
    for _ in range(world.tuning.probe_failures_restart):
        assert world.only().id == worker
        world.advance(world.tuning.probe_interval_ms / 1000)
        world.step(ev.ProbeFailed(worker, "no reply"))
    assert ev.KillWorker(worker) in world.effects
    assert world.only().state == "ready"
    assert world.only().id != worker


def test_an_agent_that_stood_still_itself_judges_nobody() -> None:
    world = running()
    worker = world.only().id
    world.advance(world.tuning.probe_interval_ms / 1000)
    effects = world.step(ev.ProbeFailed(worker, "no reply", waited_s=30.0))
    assert world.only().state == "ready"
    assert of(ev.ProbeWorker, effects) == [ev.ProbeWorker(worker)], "asked again at once"


def asked(world: World) -> str:
    """The worker of the only replica, which owes the answer to a probe."""
    world.advance(world.tuning.probe_interval_ms / 1000)
    return world.only().id


def test_a_worker_that_works_stays_however_long_its_probe_waits() -> None:
    world = running(deadline_ms=20_000.0)
    worker = asked(world)
    for second in range(19):
        for signs in (
            Signs(second, heard=True, running_s=second),
            Signs(second, cpu_s=0.4, running_s=second),
        ):
            world.step(ev.ProbeUnanswered(worker, signs))
    assert (world.only().id, world.only().state) == (worker, "ready")
    assert not of(ev.ProbeWorker, world.advance(5.0)), "one question at a time"


def test_a_worker_that_stands_still_leaves_rotation_at_once_and_returns_when_it_goes_on() -> None:
    world = running()
    worker = asked(world)
    effects = world.step(ev.ProbeUnanswered(worker, Signs(0.4, stopped=True)))
    assert of(ev.Publish, effects)
    assert (world.only().state, world.only().detail) == ("failing", "its process is stopped")
    world.step(ev.ProbeUnanswered(worker, Signs(0.8, heard=True, moved=True)))
    assert (world.only().state, world.only().detail) == ("ready", "")


def test_a_replica_that_fails_its_probe_is_not_well_because_it_is_busy() -> None:
    world = running()
    worker = asked(world)
    world.step(ev.ProbeFailed(worker, "the model raised"))
    world.advance(world.tuning.probe_interval_ms / 1000)
    world.step(ev.ProbeUnanswered(worker, Signs(0.4, heard=True, running_s=0.4)))
    assert world.only().state == "failing"


def test_what_runs_longer_than_anybody_waits_is_routed_around_and_then_replaced() -> None:
    world = running(deadline_ms=2000.0)
    worker = asked(world)
    world.step(ev.ProbeUnanswered(worker, Signs(1.0, heard=True, running_s=1.9)))
    assert world.only().state == "ready"
    world.step(ev.ProbeUnanswered(worker, Signs(1.4, heard=True, running_s=2.3)))
    assert world.only().state == "failing"
    world.step(ev.ProbeUnanswered(worker, Signs(1.8, heard=True, running_s=4.1)))
    assert "worker.given_up" in world.told()
    assert (world.only().state, world.only().id != worker) == ("ready", True)


def test_whoever_was_killed_by_its_agent_is_said_to_be_before_it_dies() -> None:
    world = running()
    world.loads = False
    worker = asked(world)
    effects = world.step(ev.ProbeUnanswered(worker, Signs(90.0, heard=True, running_s=90.0)))
    published = next(e for e in effects if isinstance(e, ev.Publish))
    assert published.state.killed == (worker,)
    assert effects.index(published) < effects.index(ev.KillWorker(worker))


def test_no_variant_is_quarantined_for_what_its_agent_did() -> None:
    world = running()
    for _ in range(3 * world.tuning.crash_loop_count):
        worker = asked(world)
        world.step(ev.ProbeUnanswered(worker, Signs(90.0, heard=True, running_s=90.0)))
        world.advance(12.0)
        assert (world.only().state, world.only().id != worker) == ("ready", True)
    assert not world.machine.state.quarantined


def test_a_load_that_takes_too_long_is_not_begun_again_at_once() -> None:
    world = World()
    world.loads = False
    world.start()
    patient = msgspec.structs.replace(variant("full"), load_timeout_s=60.0)
    world.target(wanted(), apps=(app(variants=(patient,)),))
    assert world.only().detail == "for 60 s at most"
    world.step(load_failed(world.only().id, Code.TIMEOUT))
    world.advance(59.0)
    assert world.only().state == "backoff"
    world.advance(2.0)
    assert world.only().state == "loading"


def test_a_released_replica_may_finish_what_its_app_has_time_for() -> None:
    world = running(deadline_ms=60_000.0)
    (drain,) = of(ev.DrainWorker, world.target(revision=2))
    assert drain.timeout_ms == 60_000.0


def test_an_agent_that_stops_waits_for_nobody_beyond_its_own_limit() -> None:
    world = running(deadline_ms=60_000.0)
    (drain,) = of(ev.DrainWorker, world.step(ev.StopAsked()))
    assert drain.timeout_ms == world.tuning.drain_timeout_ms


def test_the_age_of_proofs_is_told_now_and_then() -> None:
    world = running()
    before = len(world.effects)
    for _ in range(120):  # a minute
        world.step(ev.ProbePassed(asked(world)))
    told = of(ev.Publish, world.effects[before:])
    assert 3 <= len(told) <= 7
    assert all(0.0 <= ago_s <= 1.0 for each in told for ago_s in each.state.proven_ago_s.values())


def test_a_lost_link_takes_the_replica_out_and_probes_it_at_once() -> None:
    world = running()
    worker = world.only().id
    effects = world.step(ev.LinkLost(worker))
    assert world.only().state == "failing"
    assert of(ev.ProbeWorker, effects) == [ev.ProbeWorker(worker)]


def test_a_blank_worker_that_does_not_answer_is_replaced() -> None:
    world = World().start()
    checks = of(ev.CheckBlank, world.advance(world.tuning.probe_interval_ms / 1000))
    assert len(checks) == world.tuning.blank_workers
    world.step(ev.ProbeFailed(checks[0].worker, "no reply"))
    assert ev.KillWorker(checks[0].worker) in world.effects
    assert world.machine.state.blank_workers == world.tuning.blank_workers


# Adoption, measuring, stopping


def stats(worker: str, state: str = "ready") -> WorkerStats:
    return WorkerStats(42, state, worker, "digits", 1, "full", pss_mb=90.0)


def test_a_restarted_agent_adopts_replicas_under_their_names() -> None:
    old = running()
    saved = of(ev.Save, old.effects)[-1].saved
    world = World(saved=saved)
    world.step(ev.WorkerFound("6-3", "unix:/w", stats("6-3")))
    world.start()
    assert (world.only().id, world.only().pid, world.only().state) == ("6-3", 42, "ready")
    assert not of(ev.LoadWorker, world.effects)
    assert not of(ev.DrainWorker, world.effects)


def test_without_a_target_adopted_replicas_serve_on() -> None:
    world = World()
    world.step(ev.WorkerFound("6-3", "unix:/w", stats("6-3")))
    world.start()
    assert world.only().state == "ready"
    world.target(revision=9)
    assert world.replicas == ()


def test_workers_found_halfway_are_ended_and_blank_ones_used() -> None:
    world = World()
    world.step(ev.WorkerFound("6-1", "unix:/a", WorkerStats(41, "loading")))
    world.step(ev.WorkerFound("6-2", "unix:/b", WorkerStats(42, "blank")))
    world.step(ev.WorkerFound("6-3", "unix:/c", stats("6-3", "draining")))
    assert ev.KillWorker("6-1") in world.effects
    assert ev.DrainWorker("6-3", world.tuning.drain_timeout_ms) in world.effects
    assert world.machine.state.blank_workers == 1


def test_measuring_is_answered_and_leaves_no_replica() -> None:
    world = World().start()
    effects = world.measure()
    (answer,) = of(ev.AnswerMeasure, effects)
    assert (answer.token, answer.measured.profile.base_mb, answer.measured.profile.memory_mb) == (
        5,
        40.0,
        60.0,
    )
    assert of(ev.LoadWorker, effects)[0].measure
    assert world.replicas == ()
    assert len(of(ev.DrainWorker, effects)) == 1


def test_measurements_wait_for_each_other_and_are_bounded() -> None:
    world = World(tuning=AgentTuning(waiting_max=1)).start()
    world.loads = False
    world.measure(token=1)
    world.measure(token=2)
    effects = world.measure(token=3)
    assert [(e.token, e.code) for e in of(ev.RefuseMeasure, effects)] == [(3, Code.BUSY)]
    assert len(of(ev.LoadWorker, world.effects)) == 1
    world.step(loaded(of(ev.LoadWorker, world.effects)[0].worker))
    assert len(of(ev.LoadWorker, world.effects)) == 2


def test_a_failed_measurement_says_why_and_quarantines_nothing() -> None:
    world = World(tuning=AgentTuning(crash_loop_count=1)).start()
    world.loads = False
    load = of(ev.LoadWorker, world.measure())[0]
    effects = world.step(ev.LoadFailed(load.worker, Code.LOAD_FAILED, "bad model", traceback="line 9"))
    assert of(ev.RefuseMeasure, effects) == [ev.RefuseMeasure(5, Code.LOAD_FAILED, "bad model", "line 9")]
    (told,) = of(ev.Tell, effects)
    assert (told.kind, told.data["traceback"]) == ("load.failed", "line 9")
    assert world.machine.state.quarantined == ()
    assert of(ev.RefuseMeasure, world.measure("nothing"))[0].code is Code.NOT_FOUND


def test_stopping_drains_everything_and_says_when_it_is_done() -> None:
    world = running()
    world.exits = False
    effects = world.step(ev.StopAsked())
    assert len(of(ev.DrainWorker, effects)) == 1
    assert len(of(ev.KillWorker, effects)) == world.tuning.blank_workers
    assert world.only().state == "draining"
    for effect in of(ev.KillWorker, effects):
        world.step(crashed(effect.worker))
    assert not of(ev.Stopped, world.effects)
    effects = world.step(ev.WorkerExited(world.only().id, "exit status 0"))
    assert of(ev.Stopped, effects) == [ev.Stopped()]
