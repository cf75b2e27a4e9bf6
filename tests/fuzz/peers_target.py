"""What links say to agents, controllers and gateways: malformed, absurd, or not theirs to say.

Messages begin as the samples of the wire and as what the receiver's own cluster would say, so that their
names are known there. Most changes keep a field's type, and so get past the decoder.
"""

from __future__ import annotations

import copy
import json
import weakref
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from mutations import mutated
from receivers import (
    WORKER,
    AgentReceiver,
    ControllerReceiver,
    GatewayReceiver,
    Loop,
    Receiver,
    gateway_world,
)

from understudy.wire.frames import FrameDecoder, encode_frame
from understudy.wire.messages import (
    KINDS,
    BatchingEnded,
    Failure,
    Heartbeat,
    Hello,
    Kind,
    Loaded,
    NodeState,
    Result,
    Target,
    WorkerStats,
    decode_message,
    encode_message,
)
from understudy.wire.records import Profile
from understudy.wire.senders import SENDERS

SAMPLES = Path(__file__).resolve().parents[1] / "data" / "wire-samples-v1.json"
# Who may be at the other end of a link. "": nobody that says who it is.
ENDS = (
    ("controller", "agent"), ("gateway", "agent"), ("", "agent"), ("agent", "controller"),
    ("gateway", "controller"), ("", "controller"), ("agent", "gateway"), ("controller", "gateway"),
    (WORKER, "gateway"), (WORKER, "agent"),
)  # fmt: skip
WORDS = {"gateway": (Result, Failure), "agent": (Loaded, Failure, WorkerStats, BatchingEnded)}  # of workers
INTS = (
    0,
    1,
    -1,
    2,
    3,
    42,
    41,
    43,
    2**31,
    2**48 - 1,
    2**48,
    2**53,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -(2**63),
)
FLOATS = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    50.0,
    1e-320,
    1e15,
    1e308,
    -1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
)
TEXTS = (
    "", "n1", "n2", "n3", "digits", "cnn", "knn", "big", "small", "r1", "r2", "g1", "c1", "agent", "gateway",
    "controller", "worker", "ready", "loading", "failing", "quarantined", "draining", "lost",
    "stopped", "backoff", "primary", "standby", "contingency", "any", "any-2", "node:n1", "site:a",
    "digits/node:n1", "file", "tar",
    "FP32", "BYTES", "static", "app:digits", "last-good", "\x1b[2J", "\0", "\r\nx: y", "\u202eabc", "../../x",
    "/", "x" * 300, "ü" * 5000, "unix:/x", "tcp:h:99999", "tcp:", "unix:" + "x" * 300, "1e5", "%s{0}",
)  # fmt: skip
OTHERS = (None, True, False, 1, 1.5, "x", b"x", [], [1], {}, {"a": 1}, 2**64 - 1)
PROFILE = Profile(40.0, 10.0, 20.0, 1.0)


class PeersTarget:
    name = "peers"

    def __init__(self) -> None:
        samples = {
            Kind[kind]: bytes.fromhex(sample["frame"])
            for kind, sample in json.loads(SAMPLES.read_bytes()).items()
        }
        self._frames = tuple(samples.values())
        target = _measured(decode_message(FrameDecoder().feed(samples[Kind.TARGET])[0]))
        contents = {kind: _content(frame) for kind, frame in samples.items()}
        contents[Kind.TARGET] = msgspec.to_builtins(target)
        self._contents = {
            "agent": contents,
            "controller": contents,
            "gateway": contents | _of_gateways_world(),
        }
        self._receivers: dict[str, Receiver] = {
            "agent": AgentReceiver(target),
            "controller": ControllerReceiver(target),
            "gateway": GatewayReceiver(),
        }
        self._loop = Loop()
        weakref.finalize(self, self._loop.close)

    def generate(self, rng: Random) -> list[bytes]:
        """Which link, and the frames that come by it."""
        end = rng.randrange(len(ENDS))
        sender, receiver = ENDS[end]
        frames = []
        if receiver == "controller" and sender and rng.random() < 0.95:
            incarnation = rng.choice((0, 1, 2, 2**61))
            name = rng.choice(("n1", "n2", "n3") if sender == "agent" else ("g1", "g2"))
            frames.append(encode_message(Hello(sender, name, incarnation=incarnation, memory_mb=900.0)))
        for _ in range(rng.choice((1, 1, 2, 3))):
            frame = self._frame(rng, sender, receiver)
            frames.append(mutated(rng, frame, self._frames) if rng.random() < 0.08 else frame)
        return [bytes([end]), *frames]

    def _frame(self, rng: Random, sender: str, receiver: str) -> bytes:
        contents = self._contents[receiver]
        listed = WORDS.get(receiver, ()) if sender == WORKER else SENDERS.get((sender, receiver), ())
        kinds = [KINDS[type_] for type_ in listed]
        kind = rng.choice(sorted(kinds) if kinds and rng.random() < 0.92 else list(contents))
        document = copy.deepcopy(contents[kind])
        for _ in range(rng.choice((0, 1, 1, 2, 4))):
            _change(rng, document)
        content = msgspec.msgpack.encode(document)
        stream = rng.choice((0, 1, 7, 2**31))
        return encode_frame(rng.choice(list(Kind)) if rng.random() < 0.02 else kind, stream, b"", content)

    def check(self, pieces: list[bytes]) -> str:
        sender, receiver = ENDS[pieces[0][0]]
        stayed = self._loop.run_until_complete(self._receivers[receiver].hear(sender, pieces[1:]))
        return f"{sender or 'somebody'} {'heard' if stayed else 'cut off'} by the {receiver}"


def _content(frame: bytes) -> Any:
    (decoded,) = FrameDecoder().feed(frame)
    return msgspec.msgpack.decode(decoded.header or decoded.payload)


def _measured(target: Target) -> Target:
    """With profiles, as everything that is deployed."""
    apps = tuple(
        msgspec.structs.replace(
            app, variants=tuple(msgspec.structs.replace(v, profile=PROFILE) for v in app.variants)
        )
        for app in target.apps
    )
    return msgspec.structs.replace(target, apps=apps)


def _of_gateways_world() -> dict[Kind, Any]:
    world = gateway_world.World()
    state = NodeState("n1", 1, 9, 1, (world.replica("r1", "big"),), proven_ago_s={"r1": 0.1})
    found = {
        Kind.ROUTES: world.gateway.table,
        Kind.NODE_STATE: state,
        Kind.HEARTBEAT: Heartbeat("n1", 1, 9, 50.0),
    }
    return {kind: msgspec.to_builtins(message) for kind, message in found.items()}


# Changes


def _change(rng: Random, document: Any) -> None:
    """One value somewhere in it; of its own kind, mostly."""
    places = _places(document)
    if not places:
        return
    holder, key = rng.choice(places)
    value, how = holder[key], rng.random()
    if how < 0.1:
        holder[key] = copy.copy(rng.choice(OTHERS))
    elif how < 0.16:
        del holder[key]
    elif isinstance(value, bool):
        holder[key] = not value
    elif isinstance(value, int):
        holder[key] = rng.choice(INTS)
    elif isinstance(value, float):
        holder[key] = rng.choice(FLOATS)
    elif isinstance(value, str):
        holder[key] = rng.choice(TEXTS)
    elif isinstance(value, list) and value:
        holder[key] = rng.choice(([], value[:1], value * 2, value * 40))
    elif isinstance(value, dict) and value:
        some = rng.choice(list(value))
        value[rng.choice(TEXTS)] = value[some]
    else:
        holder[key] = copy.copy(rng.choice(OTHERS))


def _places(document: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        each = waiting.pop()
        for key, value in each.items() if isinstance(each, dict) else enumerate(each):
            found.append((each, key))
            if isinstance(value, dict | list):
                waiting.append(value)
    return found
