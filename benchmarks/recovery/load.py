"""Clients of the apps, in a process of their own: `python -m benchmarks.recovery.load HOST:PORT`.

Each app has a client that asks at a slow, steady pace, over one connection and with one request in flight.
When it hears that the app's node was killed, a second client asks at once, and then every few milliseconds
until it was answered rightly: an app is back with the first right answer to a request sent after the kill.
Standard input: first the apps, then lines that tell of a kill, as JSON; it ends when that ends. Standard
output: a line for each request. Times are seconds of the machine's monotonic clock.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import msgspec
import numpy as np

from benchmarks.recovery.graph import CLASSES, INPUT, OUTPUT
from benchmarks.recovery.models import DEADLINE_MS, Model, image

STEADY_S = 1.0  # between two requests of a client; large models take 25 ms of a core for each
HASTE_S = 0.005  # the same, once a node was killed
HASTE_S_MAX = 10.0
TELL_S = 0.02
LOGIT_TOLERANCE = 0.01  # of its size: other threads add up in another order
CONNECT_RETRY_S = 0.05


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One request as its client saw it. `right`: a 200 with what the variant named in it gives the image."""

    app: str
    sent_s: float
    done_s: float
    status: int  # HTTP; 0 without an answer
    variant: str = ""
    degraded: str = ""
    right: bool = False


class Asked(msgspec.Struct, frozen=True):
    """An app to be asked, by the variants that may answer."""

    name: str
    models: dict[str, Model]


class Client:
    """A connection to one app, with one request on it at most."""

    def __init__(self, app: Asked, address: str, samples: list[Sample]) -> None:
        self._app = app
        self._host, _, self._port = address.rpartition(":")
        self._wire = _request(app.name)
        self._samples = samples
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask_steadily(self) -> None:
        """For ever. Ends when cancelled."""
        try:
            while True:
                sample = await self._ask()
                await asyncio.sleep(max(0.0, sample.sent_s + STEADY_S - time.monotonic()))
        finally:
            self._hang_up()

    async def ask_hastily(self) -> None:
        """Until one answer is right, or nobody needs to know any more."""
        end_s = time.monotonic() + HASTE_S_MAX
        try:
            while time.monotonic() < end_s:
                sample = await self._ask()
                if sample.right:
                    return
                await asyncio.sleep(max(0.0, sample.sent_s + HASTE_S - time.monotonic()))
        finally:
            self._hang_up()

    async def _ask(self) -> Sample:
        sample = await self._exchange()
        self._samples.append(sample)
        return sample

    async def _exchange(self) -> Sample:
        sent_s = time.monotonic()
        try:
            async with asyncio.timeout(2 * DEADLINE_MS / 1000):
                if self._streams is None:
                    self._streams = await asyncio.open_connection(self._host, int(self._port))
                reader, writer = self._streams
                writer.write(self._wire)
                status, headers, body = await _response(reader)
        except (OSError, EOFError, ValueError):
            self._hang_up()
            await asyncio.sleep(CONNECT_RETRY_S)
            return Sample(self._app.name, sent_s, time.monotonic(), 0)
        done_s = time.monotonic()
        variant, degraded = headers.get("understudy-variant", ""), headers.get("understudy-degraded", "")
        model = self._app.models.get(variant)
        right = status == 200 and model is not None and is_right(headers, body, model)
        return Sample(self._app.name, sent_s, done_s, status, variant, degraded, right)

    def _hang_up(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def _request(app: str) -> bytes:
    """The image as raw numbers behind JSON; the answer is asked for in the same form."""
    rows = image()
    content = rows.tobytes()
    described = {"name": INPUT, "shape": list(rows.shape), "datatype": "FP32"}
    head = json.dumps(
        {
            "inputs": [{**described, "parameters": {"binary_data_size": len(content)}}],
            "outputs": [{"name": OUTPUT, "parameters": {"binary_data": True}}],
        }
    ).encode()
    lines = (
        f"POST /v2/models/{app}/infer HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/octet-stream",
        f"Inference-Header-Content-Length: {len(head)}",
        f"Content-Length: {len(head) + len(content)}",
    )
    return "\r\n".join([*lines, "", ""]).encode() + head + content


async def _response(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Status, headers by lower-case name, body. Raises `EOFError` or `ValueError` when there is none."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers["content-length"]))
    return int(first.split()[1]), headers, body


def is_right(headers: dict[str, str], body: bytes, model: Model) -> bool:
    """Whether the answer is what the model itself gives."""
    json_bytes = int(headers.get("inference-header-content-length", len(body)))
    logits = np.frombuffer(body[json_bytes:], "<f4")
    if logits.shape != (CLASSES,) or not np.isfinite(logits).all():
        return False
    near = abs(float(logits[model.best]) - model.logit) <= LOGIT_TOLERANCE * abs(model.logit)
    return int(logits.argmax()) == model.best and near


async def run(address: str) -> None:
    commands = asyncio.StreamReader(limit=2**22)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin.buffer)
    apps = {app.name: app for app in msgspec.json.decode(await commands.readline(), type=list[Asked])}
    samples: list[Sample] = []
    async with asyncio.TaskGroup() as group:
        endless = [group.create_task(Client(app, address, samples).ask_steadily()) for app in apps.values()]
        endless.append(group.create_task(_tell(samples)))
        while line := await commands.readline():
            struck: list[str] = json.loads(line)
            for name in struck:
                group.create_task(Client(apps[name], address, samples).ask_hastily())
        for task in endless:
            task.cancel()


async def _tell(samples: list[Sample]) -> None:
    """Write samples as they come. Ends when cancelled."""
    encode: Any = msgspec.json.Encoder().encode
    while True:
        await asyncio.sleep(TELL_S)
        if samples:
            sys.stdout.buffer.write(b"".join(encode(sample) + b"\n" for sample in samples))
            sys.stdout.buffer.flush()
            samples.clear()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1]))
