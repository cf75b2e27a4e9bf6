"""A worker that answers HTTP itself, for HAProxy to stand in front of: `FOLDER ADDRESS` as arguments.

It has both models of the folder, as the other contenders have. Queue, batches, decoding, inference, guard
and encoding are the worker's own (`worker.serving`); only the transport differs. A connection plays
the link that a replica answers on, and takes the body out of the frame that was meant for a gateway, which
costs it less than a microsecond.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from time import perf_counter
from typing import cast

import httptools
import msgspec
import uvloop

from understudy.adapters.links import FrameLink, parse_address
from understudy.adapters.progress import ProgressWriter
from understudy.settings.worker import WorkerTuning
from understudy.wire.errors import UnderstudyError
from understudy.wire.frames import PREFIX, PREFIX_BYTES
from understudy.wire.messages import Infer, Load
from understudy.wire.records import BatchingVerdict
from understudy.worker.batching.rechecks import Rechecks
from understudy.worker.model import load_model
from understudy.worker.model_thread import ModelThread
from understudy.worker.serving import Serving

DEADLINE_US = 1_000_000
RECHECK_SHARE = WorkerTuning().recheck_share
JSON_BYTES = b"inference-header-content-length"
HEAD = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"


class HttpConnection(asyncio.Protocol):
    """One request at a time, as clients and proxies without pipelining send them."""

    def __init__(self, replicas: dict[str, Serving]) -> None:
        self._replicas = replicas
        self._replica = next(iter(replicas.values()))
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []
        self._transport: asyncio.Transport
        self._json_bytes = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        for replica in self._replicas.values():
            replica.forget(cast(FrameLink, self))

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    # httptools

    def on_url(self, url: bytes) -> None:
        if url.startswith(b"/v2/models/"):
            self._replica = self._replicas[url.split(b"/")[3].decode()]

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == JSON_BYTES:
            self._json_bytes = int(value)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body = b"".join(self._body)
        self._body.clear()
        if self._parser.get_method() == b"POST":
            infer = Infer(DEADLINE_US, self._json_bytes)
            self._json_bytes = -1
            self._replica.infer(cast(FrameLink, self), 1, infer, body)
        else:
            self._reply(b"200 OK", b'{"ready":true}')

    # what a replica wants of a link

    def write(self, frame: bytes, payload: bytes = b"") -> None:
        header_bytes = PREFIX.unpack_from(frame)[4]
        self._reply(b"200 OK", frame[PREFIX_BYTES + header_bytes :] + payload)

    def fail(self, stream: int, error: UnderstudyError) -> None:
        self._reply(b"500 Internal Server Error", msgspec.json.encode({"error": str(error)}))

    def _reply(self, status: bytes, body: bytes) -> None:
        self._transport.write(HEAD % (status, len(body)) + body)


def onnx_models(folder: Path) -> list[Load]:
    verdict = BatchingVerdict(together=True, by="graph", reason="as an agent would find")
    return [
        Load("r1", path.stem, 1, "full", "onnx", str(path), verdict=verdict)
        for path in sorted(folder.glob("*.onnx"))
    ]


async def serve(models: list[Load], address: str, thread: ModelThread) -> None:
    hop_s = await measure_hop_s(thread)
    replicas = {}
    for load in models:
        model, _ = await thread.ask(load_model, load, 1)
        rechecks = Rechecks(model, load, RECHECK_SHARE, lambda: None)
        replicas[load.app] = Serving(model, load, hop_s, thread, rechecks, ProgressWriter())
    stopped = asyncio.Event()
    thread.on_signal(stopped.set)
    async with await listen(address, lambda: HttpConnection(replicas)):
        gc.freeze()
        await stopped.wait()


async def measure_hop_s(thread: ModelThread) -> float:
    """Seconds to the thread and back, by which a replica decides where to infer. The shortest of a few."""
    hops_s = []
    for _ in range(9):
        started_s = perf_counter()
        await thread.ask(int)
        hops_s.append(perf_counter() - started_s)
    return min(hops_s)


async def listen(address: str, make: Callable[[], HttpConnection]) -> asyncio.Server:
    kind, host, port = parse_address(address)
    loop = asyncio.get_running_loop()
    if kind == "unix":
        return await loop.create_unix_server(make, host)
    return await loop.create_server(make, host, port)


def run_loop(models: list[Load], address: str, thread: ModelThread) -> None:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(models, address, thread))
    finally:
        thread.end()


def run(models: list[Load], address: str) -> None:
    """Serve until SIGTERM. To be called by the main thread, which is the models'."""
    thread = ModelThread()
    Thread(target=run_loop, args=(models, address, thread)).start()
    thread.serve()


if __name__ == "__main__":
    run(onnx_models(Path(sys.argv[1])), sys.argv[2])
