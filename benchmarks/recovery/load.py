"""Clients of the apps, in a process of their own: `python -m benchmarks.recovery.load HOST:PORT`.

Each app has one client with one connection and one request in flight. It asks at a slow, steady pace; when
it hears that a node was killed, at once, and then every few milliseconds until it was answered rightly.
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

STEADY_S = 0.25  # between two requests of a client; large models take 25 ms of a core for each
HASTE_S = 0.005  # the same, once a node was killed
HASTE_S_MAX = 10.0  # an app that isn't back by then is asked at the steady pace again
LOGIT_TOLERANCE = 0.01  # of its size: other threads add up in another order
CONNECT_RETRY_S = 0.05


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One request as its client saw it. `right`: a 200 with what the variant that it names gives the image."""

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
    """One app's. `strike` makes it hasten until its app answers."""

    def __init__(self, app: Asked, address: str) -> None:
        self.samples: list[Sample] = []
        self._app = app
        self._host, _, self._port = address.rpartition(":")
        self._wire = _request(app.name)
        self._struck_s = 0.0  # since when it hastens; 0: it doesn't
        self._woken = asyncio.Event()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def strike(self) -> None:
        self._struck_s = time.monotonic()
        self._woken.set()

    async def run(self) -> None:
        """Ask for ever. Ends when cancelled."""
        try:
            while True:
                sample = await self._ask()
                self.samples.append(sample)
                if sample.right and sample.sent_s > self._struck_s:
                    self._struck_s = 0.0
                await self._pause(sample.sent_s)
        finally:
            self._hang_up()

    async def _pause(self, sent_s: float) -> None:
        hastens = self._struck_s and time.monotonic() < self._struck_s + HASTE_S_MAX
        rest_s = sent_s + (HASTE_S if hastens else STEADY_S) - time.monotonic()
        self._woken.clear()
        if rest_s > 0 and not (self._struck_s and sent_s < self._struck_s):
            try:
                async with asyncio.timeout(rest_s):
                    await self._woken.wait()
            except TimeoutError:
                return

    async def _ask(self) -> Sample:
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
        "Host: benchmark",
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
    apps = msgspec.json.decode(await commands.readline(), type=list[Asked])
    clients = {app.name: Client(app, address) for app in apps}
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client.run()) for client in clients.values()]
        telling = group.create_task(_tell(list(clients.values())))
        while line := await commands.readline():
            struck: list[str] = json.loads(line)
            for name in struck:
                clients[name].strike()
        for task in (*tasks, telling):
            task.cancel()


async def _tell(clients: list[Client]) -> None:
    """Write samples as they come. Ends when cancelled."""
    encode: Any = msgspec.json.Encoder().encode
    while True:
        await asyncio.sleep(HASTE_S)
        for client in clients:
            if client.samples:
                samples, client.samples = client.samples, []
                sys.stdout.buffer.write(b"".join(encode(sample) + b"\n" for sample in samples))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1]))
