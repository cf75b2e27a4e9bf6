"""Whatever a manifest holds, it is taken, stored, sent and planned, or refused in words."""

from __future__ import annotations

import contextlib
import random

import msgspec

import manifests
from understudy.config import checked_manifest, explain, parse_toml
from understudy.controller.requests import AppRequest, check_request, content_digest, draft
from understudy.core.controller.promises import check_promises
from understudy.core.controller.stored import Release, encode
from understudy.core.gateway.statics import Statics
from understudy.core.planning.plan import PlanInput, make_plan
from understudy.settings.cluster import ClusterConfig, NodeConfig
from understudy.settings.manifest import AppManifest
from understudy.wire.errors import UnderstudyError
from understudy.wire.messages import Measure, RouteTable, Target, encode_message
from understudy.wire.records import AppVersion, NodeInfo, Profile

SEEDS = 3000
CONFIG = ClusterConfig((NodeConfig("n1", 1000.0),))
ARTIFACT = {"digest": "0" * 64, "size_bytes": 10, "file_name": "model.py"}
MESSAGE_CHARS_MAX = 2000


def read(seed: int) -> AppVersion | str:
    """The manifest of that seed as the controller would begin to deploy it, or why it is refused.

    Half of them come as text of a file, the others as what a client sends.
    """
    draw_ = random.Random(seed)
    document = manifests.mutated(draw_)
    try:
        if seed % 2:
            text = manifests.scrambled(draw_, manifests.toml(document).encode())
            manifest = checked_manifest(parse_toml(text, "APP.toml", AppManifest), "APP.toml")
            document = msgspec.to_builtins(manifest)
        manifests.give_artifact(document, ARTIFACT)
        request = msgspec.json.decode(manifests.as_json(document), type=AppRequest)
        check_request(request, CONFIG)
        content_digest(request)
        return draft(request, 1)
    except UnderstudyError as error:
        return error.message
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:  # which the API answers
        return explain(str(error), AppRequest)


def test_no_manifest_breaks_whoever_reads_it() -> None:
    apps, refusals = [], []
    for seed in range(SEEDS):
        outcome = read(seed)
        (refusals if isinstance(outcome, str) else apps).append(outcome)
    assert len(apps) > SEEDS // 10, "enough of them are valid"
    assert len(refusals) > SEEDS // 10, "enough of them aren't"
    assert all(0 < len(refusal) < MESSAGE_CHARS_MAX for refusal in refusals)
    for app in apps:
        encode_message(Measure(app, app.variants[0].name))
        encode_message(RouteTable(1, apps=(app,)))
        encode_message(Target(1, apps=(app,)))
        assert msgspec.msgpack.decode(encode(Release(app)), type=Release).app == app
        assert (Statics().get(app) is None) == (app.static is None)


def test_what_is_taken_can_be_planned() -> None:
    profile = Profile(40.0, 10.0, 20.0, 1.0)
    nodes = tuple(NodeInfo(name, "a", "", 1000.0) for name in ("n1", "n2"))
    for seed in range(0, SEEDS, 10):
        app = read(seed)
        if isinstance(app, str):
            continue
        variants = tuple(msgspec.structs.replace(v, profile=profile) for v in app.variants)
        app = msgspec.structs.replace(app, variants=variants)
        with contextlib.suppress(UnderstudyError):
            check_promises(app)
            msgspec.json.encode(make_plan(PlanInput(nodes=nodes, apps=(app,)), 1, "test"))
