"""The gateway's machine and dispatcher in virtual time: links are lists, seconds are numbers."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from understudy.config import GatewayTuning, HedgeSettings
from understudy.core.gateway import machine as core
from understudy.core.gateway.rotation import Replica, Request
from understudy.wire.errors import Code, ProtocolError, UnderstudyError
from understudy.wire.frames import Frame, FrameDecoder
from understudy.wire.messages import (
    Activated,
    Failure,
    Heartbeat,
    Kind,
    NodeState,
    ReplicaState,
    Result,
    encode_message,
)
from understudy.wire.records import (
    AppVersion,
    ArtifactRef,
    Contingency,
    NodeInfo,
    Placement,
    Role,
    RouteTable,
    Variant,
)

REF = ArtifactRef("0" * 64, 1, "m.onnx")
BIG, SMALL = Variant("big", "onnx", REF, 0.99), Variant("small", "onnx", REF, 0.95)
DEFAULTS = GatewayTuning()
RESULT = msgspec.msgpack.encode(Result(100, 0, 1))


class FakeLink:
    def __init__(self) -> None:
        self.sent: list[Frame] = []
        self.congested = False
        self.last_heard_s = 0.0
        self._decoder = FrameDecoder()

    def write(self, data: bytes) -> None:
        self.sent += self._decoder.feed(data)

    def infers(self) -> list[Frame]:
        return [f for f in self.sent if f.kind == Kind.INFER]


class FakeRequest(Request):
    __slots__ = ("outcome",)

    def answered(self, replica: Replica, result: Result, body: bytes) -> None:
        self._ended((replica.variant, replica.degraded))

    def failed(self, error: UnderstudyError) -> None:
        self._ended(error.code)

    def answered_static(self, static: dict[str, Any]) -> None:
        self._ended("static")

    def _ended(self, outcome: Any) -> None:
        assert not hasattr(self, "outcome"), "a request ended twice"
        self.outcome = outcome


class World:
    """A gateway, three nodes in two sites, one app: big on n1, maybe small warm on n2, contingency on n3."""

    def __init__(self, standby: bool = True, settings: GatewayTuning = DEFAULTS, **spec: Any) -> None:
        self.now = 100.0
        self.gateway = core.Gateway(settings, random=lambda: 0.5, now=self.now)
        self.links: dict[str, FakeLink] = {}
        self.effects: list[core.GatewayEffect] = []
        self.serials: dict[str, int] = {}
        self.app_version = AppVersion("digits", 1, (BIG, SMALL), **spec)
        nodes = tuple(NodeInfo(n, s, f"unix:/{n}", 100) for n, s in (("n1", "a"), ("n2", "b"), ("n3", "b")))
        contingencies = (
            () if standby else (self.contingency("node:n1", "n2"), self.contingency("site:a", "n3"))
        )
        placements = (Placement("digits", 1, "big", "n1", Role.PRIMARY),)
        table = RouteTable(1, nodes, (self.app_version,), contingencies, placements)
        self.step(core.RoutesReceived(table))
        self.app = self.gateway.apps["digits"]
        for node in ("n1", "n2", "n3"):
            self.step(core.AgentConnected(node))
        self.report("n1", self.replica("r1", "big"))
        self.report("n2", *([self.replica("r2", "small", Role.STANDBY)] if standby else []))
        self.report("n3")

    def contingency(self, failure: str, node: str) -> Contingency:
        return Contingency("digits", 1, failure, node, "small", "big")

    def replica(
        self, id_: str, variant: str, role: Role = Role.PRIMARY, state: str = "ready"
    ) -> ReplicaState:
        return ReplicaState(id_, "digits", 1, variant, role, state, f"unix:/{id_}", pid=1)

    def step(self, event: core.GatewayEvent) -> list[core.GatewayEffect]:
        effects = self.gateway.step(event, self.now)
        for effect in effects:
            if isinstance(effect, core.ConnectWorker) and effect.replica.id not in self.links:
                link = self.links[effect.replica.id] = FakeLink()
                link.last_heard_s = self.now
                effect.replica.link = link
                effects += self.step(core.WorkerConnected(effect.replica.id))
        self.effects += effects
        return effects

    def report(self, node: str, *replicas: ReplicaState) -> list[core.GatewayEffect]:
        self.serials[node] = self.serials.get(node, 0) + 1
        return self.step(core.NodeStateReceived(NodeState(node, 1, self.serials[node], 1, replicas)))

    def request(self, timeout_s: float = 1.0) -> FakeRequest:
        request = FakeRequest(self.app, b"{}", self.now, self.now + timeout_s)
        self.gateway.dispatcher.submit(request, self.now)
        return request

    def reply(self, id_: str, frame: Frame | None = None, failure: Code | None = None) -> None:
        link = self.links[id_]
        frame = frame or link.infers()[-1]
        link.last_heard_s = self.now
        if failure is None:
            answer = Frame(Kind.RESULT, frame.stream, 0, RESULT, b"{}")
        else:
            answer = FrameDecoder().feed(encode_message(Failure(failure, "no"), frame.stream))[0]
        self.gateway.dispatcher.frame_received(self.gateway.replicas[id_], answer, self.now)

    def advance(self, seconds: float, heartbeats: str = "n1 n2 n3") -> list[core.GatewayEffect]:
        effects: list[core.GatewayEffect] = []
        for _ in range(round(seconds / 0.002)):
            self.now += 0.002
            if round(self.now * 1000) % 50 < 2:
                for node in heartbeats.split():
                    self.step(core.HeartbeatReceived(Heartbeat(node, 1, self.serials[node], 50.0)))
            effects += self.step(core.Ticked())
        return effects

    def lose_worker(self, id_: str) -> list[core.GatewayEffect]:
        self.gateway.replicas[id_].link = None
        return self.step(core.WorkerLost(id_))

    def activations(self) -> list[core.SendActivate]:
        return [e for e in self.effects if isinstance(e, core.SendActivate)]


def test_the_full_size_variant_answers_while_it_can():
    world = World()
    request = world.request()
    world.reply("r1")
    assert request.outcome == ("big", "")
    assert not world.links["r2"].sent


def test_a_request_in_flight_moves_when_its_worker_dies():
    world = World()
    request = world.request()
    world.lose_worker("r1")
    world.reply("r2")
    assert request.outcome == ("small", "failover")
    assert not world.activations(), "a warm standby needs no activation"


def test_without_standby_the_contingency_is_activated_at_once_and_the_request_waits():
    world = World(standby=False)
    request = world.request()
    world.lose_worker("r1")
    assert [(a.node, a.contingency.failure) for a in world.activations()] == [("n3", "site:a")]
    world.step(core.ActivatedReceived("n3", Activated(world.activations()[0].contingency.key, True)))
    world.advance(0.05)
    world.report("n3", world.replica("r3", "small", Role.CONTINGENCY))
    world.reply("r3")
    assert request.outcome == ("small", "failover")
    assert len(world.activations()) == 1


def test_a_refused_or_unanswered_activation_goes_to_the_next_node():
    world = World(standby=False)
    world.lose_worker("r1")
    world.step(core.ActivatedReceived("n3", Activated("digits/site:a", False, "no room")))
    assert [a.node for a in world.activations()] == ["n3", "n2"]
    world.advance(0.36)
    assert [a.node for a in world.activations()][2:] == ["n1"], "the last resort: whoever lives"


def test_two_of_three_nodes_lost_ends_with_the_last_resort():
    world = World(standby=False)
    world.lose_worker("r1")
    for node in ("n1", "n3"):
        world.step(core.AgentLost(node))
    assert world.activations()[-1].node == "n2"
    world.step(
        core.ActivatedReceived("n2", Activated(world.activations()[-1].contingency.key, False, "no room"))
    )
    assert world.gateway.apps["digits"].activation is None or world.activations()[-1].node == "n2"


def test_a_silent_replica_is_hedged_then_suspected_and_forgiven_when_it_answers():
    world = World()
    request = world.request()
    frame = world.links["r1"].infers()[0]
    world.advance(0.05)
    assert len(world.links["r2"].infers()) == 1, "hedged once"
    world.reply("r2")
    assert request.outcome == ("small", "failover")
    world.advance(0.2)
    assert not world.gateway.replicas["r1"].suspect, "its one copy was called back, so it owes nothing"
    late = [world.request() for _ in range(3)]
    world.advance(0.1)
    assert world.gateway.replicas["r1"].suspect
    for infer in world.links["r2"].infers()[1:]:
        world.reply("r2", infer)
    assert [r.outcome for r in late] == [("small", "failover")] * 3
    assert world.request().flights[0].replica.id == "r2", "routed around"
    world.reply("r1", frame)
    world.reply("r1", world.links["r1"].infers()[1])
    assert not world.gateway.replicas["r1"].suspect


def test_the_client_never_waits_beyond_its_deadline():
    world = World(standby=False, settings=GatewayTuning(hedge=HedgeSettings(enabled=False)))
    request = world.request(timeout_s=0.1)
    world.advance(0.09)
    assert not request.done
    world.advance(0.02)
    assert request.outcome is Code.TIMEOUT


def test_busy_is_not_a_failure_and_waits_for_room():
    world = World()
    request = world.request()
    world.reply("r1", failure=Code.BUSY)
    assert request.flights[0].replica.id == "r2"
    assert world.gateway.replicas["r1"].breaker.state == "closed"
    world.reply("r2", failure=Code.BUSY)
    assert not request.done
    world.advance(0.01)
    assert len(world.links["r1"].infers()) == 2


def test_a_failing_model_is_tried_elsewhere_and_leaves_the_rotation():
    world = World()
    for _ in range(3):
        request = world.request()
        world.reply("r1", failure=Code.MODEL_FAILED)
        world.reply("r2")
        assert request.outcome == ("small", "failover")
    assert world.gateway.replicas["r1"].breaker.state == "open"
    assert world.request().flights[0].replica.id == "r2"


def test_an_unreadable_answer_leaves_the_request_to_the_next_replica():
    world = World()
    request = world.request()
    stream = world.links["r1"].infers()[0].stream
    for kind, header in ((Kind.RESULT, b"\xc1"), (Kind.PONG, b"\x90"), (99, b"")):
        with pytest.raises(ProtocolError):
            world.gateway.dispatcher.frame_received(
                world.gateway.replicas["r1"], Frame(kind, stream, 0, header, b""), world.now
            )
    world.lose_worker("r1")
    world.reply("r2")
    assert request.outcome == ("small", "failover")


def test_when_most_replicas_fail_none_is_ejected():
    world = World()
    world.report("n3", world.replica("r3", "small", Role.STANDBY))
    for id_ in ("r1", "r2", "r3"):
        for _ in range(3):
            world.gateway.replicas[id_].breaker.failed(world.now, 0.5)
    world.app.refresh(world.now, 0.0)
    assert [r.id for r in world.app.ranked] == ["r1", "r2", "r3"]


def test_a_bad_request_is_not_retried_and_blames_nobody():
    world = World()
    for _ in range(10):
        request = world.request()
        world.reply("r1", failure=Code.INVALID_ARGUMENT)
        assert request.outcome is Code.INVALID_ARGUMENT
    assert world.app.ready
    assert not world.links["r2"].sent


def test_a_request_that_is_not_idempotent_is_sent_once():
    world = World(idempotent=False)
    request = world.request()
    world.lose_worker("r1")
    assert request.outcome is Code.LINK_LOST
    assert not world.links["r2"].infers()


def test_a_poison_request_is_found_and_the_others_are_answered():
    world = World()
    world.report("n3", world.replica("r3", "small", Role.STANDBY))
    requests = [world.request() for _ in range(5)]
    poison = requests[2]
    killed = 0
    for _ in range(100):
        dead = next((f.replica.id for f in poison.flights if world.gateway.replicas[f.replica.id].link), None)
        if dead is not None:
            killed += 1
            world.lose_worker(dead)
            world.report(dead.replace("r", "n"), world.replica(f"x{killed}", "small"))
        for id_, link in list(world.links.items()):
            replica = world.gateway.replicas.get(id_)
            for frame in link.infers():
                flight = replica.outstanding.get(frame.stream) if replica else None
                if flight is not None and flight.request is not poison:
                    world.reply(id_, frame)
        world.advance(0.01)
    assert poison.outcome is Code.POISON
    assert killed == 2
    assert all(r.outcome[0] in ("big", "small") for r in requests if r is not poison)
    assert any(isinstance(e, core.Note) and e.kind == "request.poisoned" for e in world.effects)


def test_two_nodes_dying_in_a_row_do_not_make_a_request_poison():
    world = World()
    world.report("n3", world.replica("r3", "small", Role.STANDBY))
    request = world.request()
    for node, id_ in (("n1", "r1"), ("n2", "r2")):
        world.lose_worker(id_)
        world.step(core.AgentLost(node))
    world.advance(0.05)
    world.reply("r3")
    assert request.outcome == ("small", "failover")


def test_a_suspect_node_is_routed_around_and_readmitted_after_a_while():
    world = World()

    def served_by() -> str:
        id_ = world.request().flights[0].replica.id
        world.reply(id_)
        return id_

    world.advance(0.5, heartbeats="n2 n3")
    assert served_by() == "r2"
    world.advance(0.2)
    assert served_by() == "r2", "not trusted after the first heartbeats"
    world.advance(0.4)
    assert served_by() == "r1"


@pytest.mark.parametrize("agent_first", [True, False])
def test_agent_and_one_worker_gone_means_that_the_node_is(agent_first: bool):
    world = World()
    world.report("n1", world.replica("r1", "big"), world.replica("r9", "small", Role.CONTINGENCY))
    request = world.request()
    if agent_first:
        world.step(core.AgentLost("n1"))
        assert not world.gateway.nodes["n1"].detector.suspect, "workers live on without their agent"
        world.lose_worker("r9")
    else:
        world.lose_worker("r9")
        world.step(core.AgentLost("n1"))
    assert request.flights[-1].replica.id == "r2", "moved before its own link broke"
    assert world.request().flights[0].replica.id == "r2"


def test_a_late_loop_blames_itself_first():
    world = World()
    world.now += 0.4
    world.step(core.Ticked(late_s=0.39))
    assert world.request().flights[0].replica.id == "r1"


def test_readiness_follows_the_replicas():
    world = World()
    world.report("n1", world.replica("r1", "big", state="failing"))
    assert world.app.ready
    world.report("n2", world.replica("r2", "small", Role.STANDBY, state="failing"))
    assert not world.app.ready


def test_a_static_answer_is_given_when_nobody_can_load_the_app():
    world = World(standby=False, static={"outputs": []})
    world.advance(1.1)
    world.lose_worker("r1")
    for node in ("n1", "n2", "n3"):
        world.step(core.AgentLost(node))
    request = world.request()
    world.advance(0.6)
    assert request.outcome == "static"


def test_no_static_answer_means_an_honest_503():
    world = World(standby=False)
    world.advance(1.1)
    world.lose_worker("r1")
    for node in ("n1", "n2", "n3"):
        world.step(core.AgentLost(node))
    request = world.request()
    assert request.outcome is Code.UNAVAILABLE


def test_queues_are_bounded():
    settings = GatewayTuning()
    world = World(standby=False, settings=settings)
    limit = settings.admission.inflight_max + settings.admission.waiting_max
    requests = [world.request() for _ in range(limit + 10)]
    shed = [r for r in requests if r.done]
    assert shed
    assert all(r.outcome is Code.SHED for r in shed)
    assert world.app.inflight <= limit


@pytest.mark.parametrize("order", [("n1", "n2"), ("n2", "n1")])
def test_node_states_of_a_former_life_are_ignored(order: tuple[str, str]):
    world = World()
    stale = NodeState(order[0], 0, 99, 1, ())
    world.step(core.NodeStateReceived(stale))
    assert world.app.ready
    assert set(world.gateway.replicas) == {"r1", "r2"}


def test_a_broken_connection_to_a_living_worker_is_made_again():
    world = World()
    del world.links["r1"]
    world.lose_worker("r1")
    assert world.request().flights[0].replica.id == "r1"


def test_removing_an_app_ends_what_waits_for_it():
    world = World(standby=False)
    world.lose_worker("r1")
    request = world.request()
    world.step(core.RoutesReceived(RouteTable(2, world.gateway.table.nodes)))
    assert request.outcome is Code.UNAVAILABLE
    assert not world.gateway.replicas
