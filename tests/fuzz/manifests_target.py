"""Manifests as files hold them: all that is done with one before its app is accepted.

From the text to settings and their checks, from there to what the control API takes, its own checks, the
record that is stored and sent, and the static answer, given once in each form.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from mutations import mutated

sys.path.append(str(Path(__file__).parents[1]))

import manifests
from understudy.config import checked_manifest, explain, parse_toml
from understudy.controller.requests import AppRequest, check_request, content_digest, draft, measuring_method
from understudy.core.controller.stored import Release, encode
from understudy.core.gateway.statics import Statics
from understudy.gateway.static_answers import as_http, for_outputs
from understudy.settings.cluster import ClusterConfig, NodeConfig
from understudy.settings.manifest import AppManifest
from understudy.wire.errors import ConfigError, InvalidArgument
from understudy.wire.frames import FrameDecoder
from understudy.wire.messages import Measure, Target, decode_message, encode_message
from understudy.wire.records import AppVersion, RouteTable

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CONFIG = ClusterConfig((NodeConfig("n1", 1000.0),))
ARTIFACT = {"digest": "0" * 64, "size_bytes": 10, "file_name": "model.py"}
REFUSAL_CHARS_MAX = 8000  # of all mistakes together, a line each
ANSWER_CHARS_MAX = 2000  # of the control API, which tells one
WAYS_OF_MANY = 3


class ManifestsTarget:
    name = "manifests"

    def __init__(self) -> None:
        examples = [tomllib.loads(path.read_text()) for path in sorted(EXAMPLES.rglob("APP.toml"))]
        self._bases: tuple[dict[str, Any], ...] = (manifests.BASE, manifests.BASE, *examples)
        self._texts = tuple(manifests.toml(base).encode() for base in self._bases)

    def generate(self, rng: Random) -> list[bytes]:
        base = rng.randrange(len(self._bases))
        how = rng.random()
        if how < 0.15:
            return [mutated(rng, self._texts[base], self._texts)]
        document = manifests.mutated(rng, self._bases[base])
        if how < 0.152:
            _grow(rng, document)
        text = manifests.toml(document).encode(errors="surrogatepass")
        return [manifests.scrambled(rng, text) if how > 0.85 else text]

    def check(self, pieces: list[bytes]) -> str:
        try:
            manifest = parse_toml(pieces[0], "APP.toml", AppManifest)
        except ConfigError as error:
            _assert_told(error.message, REFUSAL_CHARS_MAX)
            return "no TOML" if "not valid TOML" in error.message else "refused by its types"
        try:
            checked_manifest(manifest, "APP.toml")
        except ConfigError as error:
            _assert_told(error.message, REFUSAL_CHARS_MAX)
            return "refused as a whole"
        try:
            app = accepted(manifest)
        except InvalidArgument as error:
            _assert_told(error.message, ANSWER_CHARS_MAX)
            return "refused by the control API"
        assert_carried(app)
        return "accepted, with a static answer" if assert_answered(app) else "accepted"


def accepted(manifest: AppManifest) -> AppVersion:
    """As the command line sends it and the controller begins to deploy it. Raises `InvalidArgument`."""
    document = msgspec.to_builtins(manifest)
    manifests.give_artifact(document, ARTIFACT)
    for variant in document["variants"]:
        del variant["requirements"], variant["wheels"]
    try:
        request = msgspec.json.decode(msgspec.json.encode(document), type=AppRequest)
    except msgspec.ValidationError as error:
        raise InvalidArgument(explain(str(error), AppRequest)) from error
    check_request(request, CONFIG)
    app = msgspec.structs.replace(draft(request, 1), content=content_digest(request))
    for variant in app.variants:
        measuring_method(app, variant)
    return app


def assert_carried(app: AppVersion) -> None:
    """What is stored and sent is what was accepted."""
    assert msgspec.msgpack.decode(encode(Release(app)), type=Release).app == app
    for message in (Measure(app, app.variants[0].name), RouteTable(1, apps=(app,)), Target(1, apps=(app,))):
        (frame,) = FrameDecoder().feed(encode_message(message))
        assert decode_message(frame) == message


def assert_answered(app: AppVersion) -> bool:
    """Whether it has a static answer; one that was accepted can be given in every form."""
    static = Statics().get(app)
    assert (static is None) == (app.static is None)
    if static is None:
        return False
    for body, json_bytes in ((b"{}", -1), (b"", 0), (b'{"parameters":{"binary_data_output":true}}', 42)):
        answer, length = as_http(app, static, body, json_bytes)
        outputs = msgspec.json.decode(answer if length < 0 else answer[:length])["outputs"]
        assert [output["name"] for output in outputs] == [tensor.name for tensor in static]
    assert len(for_outputs(app, static, [])) == len(static)
    return True


def _grow(rng: Random, document: dict[str, Any]) -> None:
    """Lists far longer than anybody writes, of elements that are fine each."""
    count = rng.choice((40, 1100, 3000))
    names = [f"n{number}" for number in range(count)]
    match rng.randrange(WAYS_OF_MANY):
        case 0:
            document["fallback"] = [f"app:{name}" for name in names]
            document.pop("static", None)
        case 1:
            document["stand_in_for"] = names
        case _:
            side = rng.choice(("inputs", "outputs"))
            document[side] = [{"name": name, "datatype": "FP32", "shape": [-1, 2]} for name in names]
            if rng.random() < 0.5:
                document[side][-1]["name"] = "\x1b" * 1024


def _assert_told(message: str, chars_max: int) -> None:
    assert 0 < len(message) <= chars_max, f"{len(message)} characters"
