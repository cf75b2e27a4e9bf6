"""Single points of failure: each is found where it is, and only there."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from understudy.core.planning.plan import PlanInput, make_plan
from understudy.core.questions.losses import Standing
from understudy.core.questions.records import Finding
from understudy.core.questions.spof import GatewayFacts, Surroundings, audit
from understudy.wire.records import AppVersion, ArtifactRef, NodeInfo, Profile, Variant

GATEWAYS = (
    GatewayFacts("g1", "10.0.0.1:8080", 1, connected=True),
    GatewayFacts("g2", "10.0.0.2:8080", 1, connected=True),
)
AROUND = Surroundings(GATEWAYS, ("c1", "c2"), "/data/c1", "/artifacts", one_disk=False)
NODES = tuple(NodeInfo(f"n{i}", site, f"tcp:10.0.1.{i}:70", 300.0) for i, site in enumerate("aab", 1))


def app(name: str, *variants: str, **fields: object) -> AppVersion:
    made = tuple(
        Variant(
            variant,
            "onnx",
            ArtifactRef(f"digest-{variant}", 1, variant),
            0.9,
            profile=Profile(40.0, 60.0 - 10.0 * i, 10.0, 1.0),
        )
        for i, variant in enumerate(variants)
    )
    return msgspec.structs.replace(AppVersion(name, 1, made), **fields)


def standing(
    *apps: AppVersion,
    nodes: tuple[NodeInfo, ...] = NODES,
    quarantined: frozenset[tuple[str, int, str]] = frozenset(),
) -> Standing:
    plan = make_plan(PlanInput(nodes, apps, None, quarantined), 3, "test")
    return Standing(plan, apps, nodes, quarantined=quarantined)


GOOD = standing(app("plain", "large", "small"))


def found(facts: Standing = GOOD, around: Surroundings = AROUND) -> dict[str, Finding]:
    """By part, without the storage, of which there is only one kind yet."""
    findings = [f for f in audit(facts, around).findings if f.part not in ("store", "artifact store")]
    assert len({finding.part for finding in findings}) == len(findings)
    return {finding.part: finding for finding in findings}


def test_nothing_is_found_where_everything_is_there_twice() -> None:
    assert found() == {}
    looked_at = audit(GOOD, AROUND).looked_at
    assert (looked_at["app"], looked_at["variant"], looked_at["node"], looked_at["site"]) == (1, 2, 3, 2)


def test_one_store_and_one_directory_are_always_found() -> None:
    storage = {f.part: f for f in audit(GOOD, replace(AROUND, one_disk=True)).findings}
    assert storage.keys() == {"store", "artifact store"}
    assert (storage["store"].name, storage["store"].answers) == ("/data/c1", False)
    assert "the store is on the same disk" in storage["artifact store"].problem
    assert not any("same disk" in f.problem for f in audit(GOOD, AROUND).findings)


def test_an_app_without_an_answer_in_a_single_loss() -> None:
    tight = tuple(msgspec.structs.replace(node, memory_mb=150.0) for node in NODES)
    facts = standing(*(app(f"app{i}", "large", "small") for i in range(3)), nodes=tight)
    findings = [f for f in audit(facts, AROUND).findings if f.part == "app"]
    assert findings
    assert "nobody answers if" in findings[0].problem
    assert "memory: needs 90 MB" in findings[0].problem
    assert "keep 90 MB free" in findings[0].remedy


def test_an_app_without_a_place() -> None:
    small = tuple(msgspec.structs.replace(node, memory_mb=50.0) for node in NODES)
    finding = found(standing(app("huge", "large", "small"), nodes=small))
    assert finding["app"].problem.startswith("it has no place: ")


def test_an_app_with_a_single_variant() -> None:
    finding = found(standing(app("plain", "large")))["variant"]
    assert finding.name == "plain"
    assert "'large' is its only variant" in finding.problem
    assert "deploy a smaller variant" in finding.remedy


@pytest.mark.parametrize("fields", [{"static": {"outputs": []}}, {"fallback": ("app:other",)}])
def test_a_single_variant_with_somebody_behind_it_is_none(fields: dict[str, object]) -> None:
    assert found(standing(app("plain", "large", **fields))) == {}
    previous = replace(AROUND, recallable=frozenset({"plain"}))
    assert found(standing(app("plain", "large")), previous) == {}


def test_a_quarantine_that_leaves_one_variant() -> None:
    quarantined = frozenset({("plain", 1, "small")})
    finding = found(standing(app("plain", "large", "small"), quarantined=quarantined))["variant"]
    assert finding.problem == "all of its variants but 'large' are in quarantine"
    assert "understudy quarantine clear plain VARIANT" in finding.remedy


def test_variants_that_are_one_file() -> None:
    two = app("plain", "large", "small")
    twin = msgspec.structs.replace(two.variants[1], artifact=two.variants[0].artifact)
    same = msgspec.structs.replace(two, variants=(two.variants[0], twin))
    assert "the same file" in found(standing(same))["variant"].problem


def test_a_single_node() -> None:
    finding = found(standing(app("plain", "large", "small"), nodes=NODES[:1]))
    assert finding.keys() == {"node"}
    assert "it is the only node" in finding["node"].problem


def test_nodes_on_one_machine() -> None:
    local = tuple(msgspec.structs.replace(node, address=f"unix:/run/{node.name}") for node in NODES)
    assert "one machine" in found(standing(app("plain", "large", "small"), nodes=local))["node"].problem


def test_a_node_that_is_away() -> None:
    facts = replace(GOOD, away=frozenset({"n2"}))
    assert found(facts)["node"].name == "n2"


def test_nodes_in_one_site() -> None:
    nodes = tuple(msgspec.structs.replace(node, site=f"eu/{node.site}") for node in NODES)
    finding = found(standing(app("plain", "large", "small"), nodes=nodes))["site"]
    assert (finding.name, finding.problem.startswith("all 3 nodes are in it")) == ("eu", True)


@pytest.mark.parametrize(
    ("gateways", "name", "problem"),
    [
        ((), "none", "names no gateway"),
        (GATEWAYS[:1], "g1", "its process or machine"),
        ((replace(GATEWAYS[0], processes=4),), "g1", "while its machine is down"),
        (
            (GATEWAYS[0], replace(GATEWAYS[1], connected=False)),
            "g1",
            "of 2 gateways only 1 is connected: g2 not",
        ),
        (
            tuple(replace(gateway, http="127.0.0.1:1") for gateway in GATEWAYS),
            "this machine",
            "listen on the loopback of one machine",
        ),
    ],
)
def test_gateways(gateways: tuple[GatewayFacts, ...], name: str, problem: str) -> None:
    finding = found(around=replace(AROUND, gateways=gateways))["gateway"]
    assert finding.name == name
    assert problem in finding.problem
    assert finding.answers


def test_a_single_controller_is_no_loss_to_clients() -> None:
    finding = found(around=replace(AROUND, controllers=("c1",)))["controller"]
    assert (finding.name, finding.answers) == ("c1", False)
