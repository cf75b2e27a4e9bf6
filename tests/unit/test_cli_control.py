"""The client of the control API against real sockets: what is tried, what is told, what is sent."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from understudy.adapters.control import Servers
from understudy.cli.addresses import CONTROL_URL_DEFAULT, GATEWAY_URL_DEFAULT, controllers, gateways
from understudy.cli.exits import Exit, exit_of
from understudy.wire.errors import Code, CommandError, UnderstudyError

CONNECTED = b"""{"apps": [], "nodes": [], "revision": 1, "gateways": [
    {"name": "g1", "revision": 1, "connected": true, "http_address": "10.0.0.1:3"},
    {"name": "g2", "revision": 1, "connected": true, "http_address": "https://10.0.0.2:3"},
    {"name": "g3", "revision": 1, "connected": false, "http_address": "10.0.0.3:3"},
    {"name": "g4", "revision": 0, "connected": true, "http_address": ""}
]}"""
ANSWERS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "/ok": (200, {}, b'{"fine": true}'),
    "/v1/status": (200, {}, CONNECTED),
    "/list/v1/status": (200, {}, b"[]"),
    "/other/v1/status": (200, {}, b'{"gateways": [{"connected": true, "http_address": "10.0.0.1:3"}]}'),
    "/empty": (204, {}, b""),
    "/text": (200, {}, b"<html>"),
    "/refused": (409, {}, b'{"error": "digest differs", "code": "artifact-corrupt"}'),
    "/misdirected": (409, {"Understudy-Cluster": "one"}, b"{}"),
    "/gateway": (503, {"Understudy-Code": "shed"}, b'{"error": "too busy"}'),
    "/plain": (404, {}, b"nothing here"),
    "/odd": (422, {}, b'{"error": "odd", "code": "never-heard-of"}'),
}


class Scripted(BaseHTTPRequestHandler):
    seen: list[tuple[str, str, bytes]]

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((self.command, self.path, body))  # type: ignore[attr-defined]
        status, headers, content = ANSWERS[self.path.partition("?")[0]]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, format: str, *args: object) -> None:
        return None


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as listening:
        listening.seen = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield listening
        listening.shutdown()
        thread.join()


@pytest.fixture
def silent() -> Iterator[str]:
    """Accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def closed() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}"


def servers(*urls: str, timeout_s: float = 2.0) -> Servers:
    return Servers(urls, "controller", "given by the test", timeout_s)


def url_of(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_documents_come_back(server: ThreadingHTTPServer) -> None:
    assert servers(url_of(server)).get("/ok", limit=5, app="", after=None) == {"fine": True}
    assert server.seen[-1][1] == "/ok?limit=5"  # type: ignore[attr-defined]
    assert servers(url_of(server)).get("/empty") == {}


def test_the_next_address_is_tried(server: ThreadingHTTPServer, closed: str) -> None:
    assert servers(closed, url_of(server)).get("/ok") == {"fine": True}


def test_nobody_there_says_what_was_tried_and_what_to_do(closed: str) -> None:
    with pytest.raises(CommandError) as raised:
        servers(closed).get("/ok")
    assert raised.value.code is Code.UNAVAILABLE
    assert exit_of(raised.value.code) is Exit.UNAVAILABLE
    assert f"{closed} (connection refused), given by the test" in raised.value.message
    assert "understudy up" in raised.value.hint
    assert "--url" in raised.value.hint


def test_silence_is_a_timeout_that_names_its_limit(silent: str) -> None:
    with pytest.raises(CommandError, match=r"did not answer GET /ok within 0\.05 s") as raised:
        servers(silent, timeout_s=0.05).get("/ok")
    assert raised.value.code is Code.TIMEOUT


@pytest.mark.parametrize(
    ("path", "code", "message"),
    [
        ("/refused", Code.ARTIFACT_CORRUPT, "digest differs"),
        ("/gateway", Code.SHED, "too busy"),
        ("/plain", Code.NOT_FOUND, "HTTP 404"),
        ("/odd", Code.INVALID_ARGUMENT, "odd"),
        ("/text", Code.PROTOCOL, "not JSON"),
    ],
)
def test_refusals_are_raised_as_what_they_say(
    server: ThreadingHTTPServer, path: str, code: Code, message: str
) -> None:
    with pytest.raises(UnderstudyError, match=message) as raised:
        servers(url_of(server)).get(path)
    assert raised.value.code is code


def test_uploads_are_streamed_whole(server: ThreadingHTTPServer) -> None:
    content = bytes(range(256)) * 4096
    servers(url_of(server)).call("PUT", "/ok", upload=(io.BytesIO(content), len(content)))
    assert server.seen[-1] == ("PUT", "/ok", content)  # type: ignore[attr-defined]


@pytest.mark.parametrize("url", ["ftp://host:1", "http://", "http://host:port", "http://host:0"])
def test_addresses_are_checked(url: str) -> None:
    with pytest.raises(UnderstudyError, match="is not an address"):
        servers(url)


def test_where_addresses_come_from(tmp_path: Path) -> None:
    cluster = tmp_path / "CLUSTER.toml"
    cluster.write_text(
        'nodes = [{ name = "n1", memory_mb = 9 }]\n'
        'controllers = [{ name = "c1", http = "127.0.0.1:1" }]\n'
        'gateways = [{ name = "g1", http = "127.0.0.1:3" }]\n'
    )
    assert controllers("localhost:7", cluster).urls == ("http://localhost:7",)
    assert controllers(None, cluster).urls == ("http://127.0.0.1:1",)
    assert controllers(None, None).urls == (CONTROL_URL_DEFAULT,)
    assert gateways(None, cluster).urls == ("http://127.0.0.1:3",)
    assert "CLUSTER.toml" in controllers(None, cluster).source


def test_gateways_are_asked_of_a_controller_where_only_that_is_named(
    server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    control = url_of(server)
    assert gateways(None, None, control=control).urls == ("http://10.0.0.1:3", "https://10.0.0.2:3")
    assert gateways("localhost:7", None, control=control).urls == ("http://localhost:7",)
    assert gateways(None, None, control="127.0.0.1:1").urls == (GATEWAY_URL_DEFAULT,)
    for no_status in ("odd", "list", "other"):
        assert gateways(None, None, control=f"{control}/{no_status}").urls == (GATEWAY_URL_DEFAULT,)


def test_every_failure_has_an_exit_status() -> None:
    assert all(exit_of(code) not in (Exit.OK, Exit.UNMET) for code in Code)


def test_a_controller_of_another_cluster_is_named_with_the_remedy(server: ThreadingHTTPServer) -> None:
    port = server.server_address[1]
    asked = Servers([f"http://127.0.0.1:{port}"], "controller", "", cluster="two")
    with pytest.raises(CommandError) as caught:
        asked.get("/misdirected")
    assert caught.value.message == f"127.0.0.1:{port} is cluster 'one', not 'two'"
    assert "another port" in caught.value.hint
    assert caught.value.code is Code.CONFLICT
