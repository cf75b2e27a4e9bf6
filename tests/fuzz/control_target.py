"""The control API of a real controller, doorkeeper and all, without a socket: paths, headers, bodies.

Requests are made from the table of routes as it is. What is uploaded lies in memory; what is deployed is
checked, stored, and fails at once, since no node is there that could measure it.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote, unquote, unquote_to_bytes

import fuzzing
import msgspec
from mutations import cut, mutated

sys.path.append(str(Path(__file__).parents[1]))

import manifests
from understudy.adapters.audit import AuditLog
from understudy.adapters.sqlite_store import SqliteStore
from understudy.controller.api import build_api
from understudy.controller.doorkeeper import Doorkeeper
from understudy.controller.requests import AppRequest, draft
from understudy.controller.shell import Controller
from understudy.core.controller import events as ev
from understudy.core.controller.stored import Memory, Release
from understudy.core.webpages import Names
from understudy.settings.cluster import ClusterConfig, NodeConfig
from understudy.settings.controller import ControllerTuning
from understudy.settings.gateway import GatewayConfig
from understudy.settings.places import LogSettings
from understudy.wire.errors import Code
from understudy.wire.messages import Hello
from understudy.wire.records import BatchingVerdict, Profile

TOKEN = "t0ken"
CONTENTS = (b"", b"class Model: ...", bytes(range(256)) * 20)
DIGESTS = tuple(hashlib.sha256(content).hexdigest() for content in CONTENTS)
STANDING = "standing"  # an app that is deployed
NAMES = (
    STANDING, "n1", "digits", "nobody", "d1-1", *DIGESTS, DIGESTS[0].upper(), "0" * 64, "0" * 63, "..", ".",
    "", "\n", "a\0b", "\x1b[2J", "ü", "%", "a/b", "x" * 300, "-1", "1e3", "\u202e",
)  # fmt: skip
NUMBERS = (
    "1",
    "0",
    "-1",
    "100",
    "1000",
    "1001",
    "1e3",
    "nan",
    "",
    " 1",
    "9" * 19,
    "9" * 30,
    "9" * 5000,
    "\u0663",
)
QUERIES = ("limit", "after", "app", "node", "manifest", "if_changed", "x")
WORDS = ("", "true", "false", "1", "/a/b.toml", "standing", "x" * 5000, "\0", "\x7f", "ü")
QUESTION = {
    "fail": ["n1"],
    "add": [{"memory_mb": 100.0, "name": "n9", "site": "a/b"}],
    "remove": [],
    "explain": None,
}
PARTS = (
    "n1",
    "node:n1",
    "site:a",
    "any-2",
    "any-0",
    "any-99999999999999999999",
    "n1+n2",
    "+",
    "default",
    "",
    "a/b/",
)
PROBLEMS = {"problems": ["the disk is full", "x"]}
TYPES = (
    b"application/json",
    b"application/octet-stream",
    b"application/json; charset=latin-1",
    b"text/plain",
    b"",
)
FINE = frozenset((200, 201, 202, 204))
REFUSED = frozenset((400, 401, 403, 404, 405, 409, 413, 415, 421))
NOT_NOW = frozenset((503,))
ERROR_CHARS_MAX = 3000
PROFILE = Profile(40.0, 10.0, 20.0, 1.0)


class ControlTarget:
    name = "control"

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(Inline())
        self._tasks = Tasks(self._loop)
        self._controller = self._run(self._started(fuzzing.folder_of(self)))
        self._document = {**manifests.BASE, "name": "fuzzed"}
        api = build_api(self._controller, self._config, self._audit)
        self._routes = tuple(
            (method, route.path)
            for route in api.routes
            for method in sorted(route.methods)
            if method != "OPTIONS" and not route.path.startswith("/schema")
        )
        weakref.finalize(self, _end, self._loop, self._store).atexit = False
        self._app = Doorkeeper(api, TOKEN, Names(["127.0.0.1:80"]), self._audit)

    async def _started(self, folder: Path) -> Controller:
        tuning = ControllerTuning(
            start_grace_ms=0.001, profile_timeout_s=1e-6, deployments_max=4, deployment_memory_s=1e-6,
            upload_bytes_max=6000, events_max=100,
        )  # fmt: skip
        self._config = ClusterConfig(
            nodes=(NodeConfig("n1", 1000.0), NodeConfig("n2", 1000.0)), gateways=(GatewayConfig("g1"),),
            controller=tuning, name="fuzzed", data_dir=str(folder), artifacts_dir=str(folder / "artifacts"),
            run_dir=str(folder),
        )  # fmt: skip
        self._audit = AuditLog(folder, LogSettings())
        self._store = await SqliteStore.open(folder / "store", tuning.events_max)
        controller = Controller(self._config, "c1", self._store, Memory(), 0, self._tasks)
        for content, digest in zip(CONTENTS, DIGESTS, strict=True):
            with controller.artifacts.upload(digest) as upload:
                upload.write(content)
                upload.commit()
        for node in ("n1", "n2"):
            controller.step(ev.AgentHello(Hello("agent", node, memory_mb=1000.0, incarnation=1)))
        controller.step(ev.Deployed(_standing()))
        controller.step(ev.Tick())
        await self._tasks.done()  # the plan
        assert controller.machine.plan is not None
        assert controller.machine.hearing.over
        return controller

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(work)

    # Requests

    def generate(self, rng: Random) -> list[bytes]:
        """The request's line, headers a line each, and the body as it comes."""
        method, path = rng.choice(self._routes)
        if rng.random() < 0.5:
            method, path = rng.choice(
                (("POST", "/v1/apps"), ("PUT", "/v1/artifacts/{digest}"), ("POST", "/v1/apps"))
            )
        content = rng.choice(CONTENTS)
        digest = hashlib.sha256(content).hexdigest()
        steps = [self._step(rng, step, digest) if "{" in step else step for step in path.split("/")]
        path = "/".join(steps)
        if rng.random() < 0.03:
            path = mutated(rng, path.encode()).decode("latin-1")
            path = quote(path, safe="/%?&=+:;,@!~")
        if rng.random() < 0.3:
            asked = rng.choices(QUERIES, k=rng.randint(1, 3))
            path += "?" + "&".join(f"{name}={quote(rng.choice((*NUMBERS, *WORDS)))}" for name in asked)
        if rng.random() < 0.02:
            method = rng.choice(("PATCH", "OPTIONS", "HEAD", "TRACE", "DELETE", "G\0T"))
        body = self._body(rng, method, path, content)
        return [f"{method} {path}".encode(), _headers(rng, path, body), *cut(rng, body)]

    def _step(self, rng: Random, step: str, digest: str) -> str:
        if "digest" in step and rng.random() < 0.7:
            return digest
        if "node" in step and rng.random() < 0.5:
            return rng.choice(("n1", "n2"))
        return quote(rng.choice(NAMES), safe="" if rng.random() < 0.8 else "/%")

    def _body(self, rng: Random, method: str, path: str, content: bytes) -> bytes:
        if "/artifacts/" in path:
            return mutated(rng, content) if rng.random() < 0.3 else content
        if method not in ("POST", "PUT"):
            return b"" if rng.random() < 0.9 else rng.randbytes(20)
        document: Any
        if "/apps" in path:
            document = manifests.mutated(rng, self._document)
            size = len(CONTENTS[1]) if rng.random() < 0.95 else rng.choice((0, 1, 2**60))
            artifact = {"digest": DIGESTS[1], "size_bytes": size, "file_name": "model.py"}
            if rng.random() < 0.2:
                artifact = manifests.mutated(rng, artifact | {"format": "tar"})
            manifests.give_artifact(document, artifact)
            if document.get("name") == STANDING:
                document["name"] = "another"
        elif "what-if" in path:
            document = manifests.mutated(
                rng, QUESTION | {"fail": rng.choices(PARTS, k=rng.choice((1, 1, 2, 101)))}
            )
            _choose_one(rng, document)
        else:
            document = manifests.mutated(rng, PROBLEMS)
        body = manifests.as_json(document)
        return mutated(rng, body) if rng.random() < 0.15 else body

    def check(self, pieces: list[bytes]) -> str:
        line, headers, *body = pieces
        method, _, target = line.decode().partition(" ")
        if method == "DELETE" and STANDING in unquote(target):
            return "others left out"  # it is to stand
        status, answer = self._run(self._asked(method, target, headers, body))
        if status == 0:
            return "hung up"
        assert status in FINE | REFUSED | NOT_NOW, (status, answer[:2000])
        if status not in FINE and method != "HEAD":
            told = msgspec.json.decode(answer)
            assert told["code"] in set(Code), told
            assert 0 < len(told["error"]) <= ERROR_CHARS_MAX, len(told["error"])
        kind = "accepted" if status in FINE else "not now" if status in NOT_NOW else f"refused with {status}"
        return f"{method if method in ('POST', 'PUT') else 'others'} {kind}"

    async def _asked(self, method: str, target: str, headers: bytes, body: list[bytes]) -> tuple[int, bytes]:
        """Status and body of the answer, after all that followed from the request. Status 0: none came."""
        path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote_to_bytes(path).decode(errors="replace"),
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "headers": [tuple(each.split(b": ", 1)) for each in headers.split(b"\n")],
            "state": {},
        }
        waiting = [{"type": "http.request", "body": part, "more_body": True} for part in body[:-1]]
        waiting.append({"type": "http.request", "body": body[-1], "more_body": False})
        if b"x-hangs-up" in headers:
            waiting[-1:] = []
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return waiting.pop(0) if waiting else {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        await self._tasks.done()
        await self._controller.bookkeeper.flush()
        if not sent or b"x-hangs-up" in headers:
            return 0, b""
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


class Tasks:
    """What the controller starts beside itself; each to its end before the next request."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._running: set[asyncio.Task[Any]] = set()

    def create_task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self._loop.create_task(work)
        self._running.add(task)
        return task

    async def done(self) -> None:
        while self._running:
            running, self._running = self._running, set()
            await asyncio.gather(*running)


class Inline(ThreadPoolExecutor):
    """Work that would go to a thread is done at once: inputs are checked one after the other anyway."""

    def submit(self, work: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments, **named))
        except BaseException as error:
            future.set_exception(error)
        return future


def _end(loop: asyncio.AbstractEventLoop, store: SqliteStore) -> None:
    loop.run_until_complete(store.close())
    loop.close()


def _standing() -> Release:
    document = {**manifests.BASE, "name": STANDING}
    artifact = {"digest": DIGESTS[1], "size_bytes": len(CONTENTS[1]), "file_name": "model.py"}
    variants = [{**variant, "artifact": artifact} for variant in document["variants"]]
    app = draft(msgspec.convert({**document, "variants": variants}, AppRequest), 1)
    verdict = BatchingVerdict(True, "graph", "it works row by row")
    measured = tuple(msgspec.structs.replace(v, profile=PROFILE, verdict=verdict) for v in app.variants)
    return Release(msgspec.structs.replace(app, variants=measured), "x")


def _choose_one(rng: Random, document: dict[str, Any]) -> None:
    """A question is one of three; now and then it is all of them."""
    kinds = [("fail",), ("add", "remove"), ("explain",)]
    kept = rng.choice(kinds)
    if kept == ("explain",):
        document["explain"] = rng.choice((STANDING, "nobody", ""))
    for kind in kinds if rng.random() < 0.9 else ():
        for field in kind if kind != kept else ():
            document.pop(field, None)


def _headers(rng: Random, path: str, body: bytes) -> bytes:
    upload = "/artifacts/" in path
    headers = {
        b"host": b"127.0.0.1:80",
        b"authorization": b"Bearer " + TOKEN.encode(),
        b"content-type": TYPES[1] if upload else TYPES[0],
        b"content-length": b"%d" % len(body),
    }
    if rng.random() < 0.1:
        name = rng.choice((*headers, b"origin", b"understudy-cluster", b"x-hangs-up"))
        headers[name] = rng.choice(
            (*TYPES, b"example.com", b"fuzzed", b"http://127.0.0.1:80", b"\xff", b"Bearer x")
        )
        if name == b"content-length":  # the server lets nothing but numbers through
            headers[name] = b"%d" % rng.choice((0, 1, 10**9, 2**63))
    return b"\n".join(name + b": " + value for name, value in headers.items())
