"""Deploy generated manifests, artifacts and archives to a running cluster, beside an app that is asked.

`make fuzz-deployments`, `python tests/fuzz/deployments.py --count 100`. No process of a role ends, the good
app answers every request, what a role holds doesn't grow beyond `GROWN_MB_MAX`, and whatever is refused is
refused by a 4xx with a text, or as a deployment that failed and says why. Cases depend on their seed and
number. The good app has a long deadline: this is about harm, not about time.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import statistics
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from urllib.parse import quote

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "integration")]

import fuzzing
from archives_target import BLOCK, packed
from families import ROWS, write_linear, write_linear_app
from fuzzing import say
from harness import Answer, Harness, closed, infer_body, read_answer, request_bytes, running
from mutations import mutated

import manifests
from understudy.adapters.memory import pss_mb
from understudy.adapters.operator_tokens import known_token

COUNT = 1000
AT_ONCE = 4
WARM = 50  # cases before memory is measured
GROWN_MB_MAX = 40.0  # of each role, after WARM cases
REST_S = 5.0  # for memory to come back
POLL_S = 0.1
ENDS_WITHIN_S = 120.0  # of one deployment
PERIOD_S = 0.02  # of the good app's requests
TEXT_CHARS_MAX = 4000
GOOD = "plain"
SETTINGS = "\nplacing_timeout_s = 10\nprofile_timeout_s = 20\n[agent]\nload_timeout_s = 10\n"
MODEL = """
class Model:
    inputs = [("x", "FP32", [-1, 2])]
    outputs = [("y", "FP32", [-1, 2])]

    def load(self, path):
        self.number = {number}

    def predict(self, inputs):
        return {{"y": inputs["x"]}}
"""


class Case(NamedTuple):
    """`digest` is what the upload is said to be."""

    artifact: bytes
    digest: str
    body: bytes


class Seen(NamedTuple):
    outcomes: Counter[str]
    wrong: list[str]


class Cases:
    def __init__(self, seed: int) -> None:
        self._seed = seed
        with tempfile.TemporaryDirectory() as folder:
            write_linear(Path(folder) / "m.onnx", 1, 8)
            self._onnx = (Path(folder) / "m.onnx").read_bytes()

    def make(self, number: int) -> Case:
        rng = fuzzing.rng_of(self._seed, number)
        document = (
            _plain() if rng.random() < 0.5 else manifests.mutated(rng, rng.choice((_plain(), manifests.BASE)))
        )
        if document.get("name") == "digits":
            document["name"] = f"f{self._seed}-{number}"
        content, reference = self._artifact(rng, number)
        _set(document, "runtime", "onnx" if reference["file_name"] == "m.onnx" else "python")
        digest = hashlib.sha256(content).hexdigest()
        if rng.random() < 0.05:
            digest = rng.choice(("0" * 64, digest[:-1], digest.upper(), "..%2f" + digest, "\x1b"))
        manifests.give_artifact(document, {"digest": digest, "size_bytes": max(len(content), 1), **reference})
        if rng.random() < 0.02:  # they are to be packages; building them takes long
            _set(document, "wheels", {"digest": digest, "size_bytes": len(content), "file_name": "w.tar"})
        body = manifests.as_json(document)
        return Case(content, digest, mutated(rng, body) if rng.random() < 0.05 else body)

    def _artifact(self, rng: Random, number: int) -> tuple[bytes, dict[str, str]]:
        source = MODEL.format(number=number).encode()
        how = rng.random()
        if how < 0.4:
            content = source if rng.random() < 0.6 else mutated(rng, source)
            return content, {"file_name": "model.py"}
        if how < 0.6:
            onnx = self._onnx + b"\x3a\x04" + b"%04d" % (number % 10_000)  # of another digest
            return (onnx if rng.random() < 0.3 else mutated(rng, self._onnx)), {"file_name": "m.onnx"}
        if how < 0.95:
            entry = tarfile.TarInfo("model.py")
            entry.size = len(source)
            model = entry.tobuf(tarfile.USTAR_FORMAT) + source + bytes(-len(source) % BLOCK)
            archive = (model if rng.random() < 0.7 else b"") + packed(rng)
            if rng.random() < 0.2:
                archive = mutated(rng, archive)
            return archive, {"file_name": "model", "format": "tar"}
        return rng.randbytes(rng.choice((0, 1, 100, 5000))), {"file_name": "model.py"}


def _plain() -> dict[str, Any]:
    """What is most likely to be deployed."""
    variants = [{"name": "v", "runtime": "python", "artifact": "model.py", "accuracy": 0.9}]
    return {"name": "digits", "variants": variants, "deadline_ms": 500.0}


def _set(document: dict[str, Any], field: str, value: Any) -> None:
    variants = document.get("variants")
    for variant in variants if isinstance(variants, list) else ():
        if isinstance(variant, dict) and (field == "wheels" or field in variant):
            variant[field] = value


class Deployer:
    """Deploys cases, one after another."""

    def __init__(self, harness: Harness, cases: Cases, seen: Seen) -> None:
        control = harness.cluster.control
        self._port = int(control.urls[0].rpartition(":")[2])
        self._token = known_token(control.urls[0], control.data_dir)
        self._cases, self._seen = cases, seen

    async def run(self, numbers: list[int]) -> None:
        while numbers:
            number = numbers.pop()
            try:
                self._seen.outcomes[await self.deploy(self._cases.make(number))] += 1
            except (AssertionError, OSError, TimeoutError, ValueError) as error:
                self._seen.wrong.append(f"case {number}: {type(error).__name__}: {error}")

    async def deploy(self, case: Case) -> str:
        uploaded = await self._ask("PUT", f"/v1/artifacts/{quote(case.digest, safe='%')}", case.artifact)
        begun = await self._ask("POST", "/v1/apps", case.body)
        if begun.status >= 300:
            return f"upload {uploaded.status}, app {begun.status}"
        deadline_s = time.monotonic() + ENDS_WITHIN_S
        found = begun.json
        while found["state"] not in ("ready", "failed"):
            assert time.monotonic() < deadline_s, f"it doesn't end: {found}"
            await asyncio.sleep(POLL_S)
            found = (await self._ask("GET", f"/v1/deployments/{found['deployment']}")).json
        assert found["state"] == "ready" or 0 < len(found["message"]) <= TEXT_CHARS_MAX, found
        await self._ask("DELETE", f"/v1/apps/{quote(found['app'], safe='')}")  # there, if it has no place too
        return f"deployment {found['state']}"

    async def _ask(self, method: str, path: str, body: bytes = b"") -> Answer:
        """Whatever is no success has to be a refusal with a text."""
        kind = "octet-stream" if "/artifacts/" in path else "json"
        headers = f"Authorization: Bearer {self._token}\r\nContent-Type: application/{kind}\r\n"
        answer = await asked(self._port, method, path, body, headers)
        if answer.status >= 300:
            assert 400 <= answer.status < 500, (method, path, answer.status, answer.body[:500])
            assert 0 < len(answer.json["error"]) <= TEXT_CHARS_MAX, (method, path, answer.body[:500])
        return answer


async def asked(port: int, method: str, path: str, body: bytes, headers: str) -> Answer:
    async with asyncio.timeout(ENDS_WITHIN_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request_bytes(method, path, body, headers))
            return await read_answer(reader)
        finally:
            await closed(writer)


async def deploy(harness: Harness, seed: int, numbers: range, at_once: int = AT_ONCE) -> Seen:
    """What became of the cases of these numbers."""
    seen = Seen(Counter(), [])
    waiting = list(reversed(numbers))
    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(Deployer(harness, Cases(seed), seen).run(waiting))
    return seen


def roles(harness: Harness) -> dict[str, tuple[int, int]]:
    """Of each: its process, and how often one was started."""
    return {str(role): (role.pid, role.starts) for role in harness.cluster.roles.values()}


def memory_mb(harness: Harness) -> dict[str, float]:
    return {name: round(pss_mb(pid), 1) for name, (pid, _) in roles(harness).items()}


async def fuzz(count: int, seed: int) -> int:
    with tempfile.TemporaryDirectory(prefix="deployments-") as name:
        write_linear_app(Path(name) / "apps" / GOOD, GOOD, "critical", "deadline_ms = 30000")
        async with running(Path(name), nodes={"n1": "a", "n2": "b"}, extra=SETTINGS) as harness:
            began_s, before = time.monotonic(), roles(harness)
            async with harness.traffic(GOOD, infer_body(ROWS), PERIOD_S) as good:
                warm = await deploy(harness, seed, range(min(WARM, count)))
                held_mb = memory_mb(harness)
                seen = await deploy(harness, seed, range(WARM, count))
                await asyncio.sleep(REST_S)
            grown_mb = {role: round(mb - held_mb[role], 1) for role, mb in memory_mb(harness).items()}
            after = roles(harness)
            lasted_s = time.monotonic() - began_s
    outcomes, wrong = warm.outcomes + seen.outcomes, warm.wrong + seen.wrong
    latencies_ms = sorted(1000 * answer.latency_s for answer in good.answers)
    say(f"seed {seed}: {outcomes.total() + len(wrong):,} cases in {lasted_s:.0f} s")
    say("  " + ", ".join(f"{outcome} {number}" for outcome, number in sorted(outcomes.items())))
    say(f"  good app: {len(latencies_ms):,} requests, {len(good.failed)} failed", end="; ")
    say(f"p50 {statistics.median(latencies_ms):.1f}, max {latencies_ms[-1]:.0f} ms")
    say(f"  roles, MB after {WARM} cases: {held_mb}, and since then: {grown_mb}")
    wrong += [f"the good app failed: {a.status} {a.body[:200]!r}" for a in good.failed]
    wrong += [
        f"{role} was {before[role]}, is {after[role]}" for role in before if after[role] != before[role]
    ]
    wrong += [f"{role} grew by {mb} MB" for role, mb in grown_mb.items() if mb > GROWN_MB_MAX]
    for what in wrong[:20]:
        say(what)
    return bool(wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT, help=f"cases; default {COUNT:,}")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    return asyncio.run(fuzz(arguments.count, arguments.seed))


if __name__ == "__main__":
    raise SystemExit(main())
