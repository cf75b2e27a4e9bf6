"""A control API of a few lines, for tests of the commands that talk to one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Api(ThreadingHTTPServer):
    """Answers each GET with the next of `states`, of which the last one stays, and paths by `answers`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.states: list[dict[str, Any]] = [{"state": "ready", "version": 1}]
        self.artifacts: dict[str, bytes] = {}
        self.uploads = 0
        self.deployed: list[Any] = []  # whatever was posted
        self.answers: dict[str, Any] = {}
        self.refusals: list[tuple[int, dict[str, Any]]] = []  # of what is posted, before anything is taken

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Api

    def do_HEAD(self) -> None:
        known = self.path.rpartition("/")[2] in self.server.artifacts
        self.send_response(200 if known else 404)
        self.end_headers()

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.artifacts[self.path.rpartition("/")[2]] = body
        self.server.uploads += 1
        self.reply(201, {})

    def do_POST(self) -> None:
        self.server.deployed.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.server.refusals:
            self.reply(*self.server.refusals.pop(0))
        elif self.path in self.server.answers:
            self.reply(200, self.server.answers[self.path])
        else:
            self.reply(202, {"deployment": "d1-1"})

    def do_GET(self) -> None:
        if self.path in self.server.answers:
            self.reply(200, self.server.answers[self.path])
            return
        states = self.server.states
        state = states.pop(0) if len(states) > 1 else states[0]
        if "error" in state:
            self.reply(503, state)
        else:
            self.reply(200, {"deployment": "d1-1", "app": "letters", "total": 1} | state)

    def reply(self, status: int, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return None


@contextmanager
def serving() -> Iterator[Api]:
    with Api() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
