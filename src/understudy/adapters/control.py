"""HTTP to the control API and to gateways, on the standard library.

Lives here: finding a server, deadlines, streamed uploads, errors as `UnderstudyError`. Does not live here:
what the documents mean (`wire.views`), and which servers a command means (`cli.addresses`).
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
from collections.abc import Collection, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from understudy.adapters.operator_tokens import VARIABLE, given_token, known_token
from understudy.adapters.places import stranger_behind
from understudy.config import read_secret
from understudy.settings.cluster import ClusterConfig
from understudy.settings.gateway import GatewayConfig
from understudy.wire.errors import Code, CommandError, UnderstudyError
from understudy.wire.statuses import CLUSTER_HEADER

TIMEOUT_S = 10.0
UPLOAD_BLOCK_BYTES = 256 * 1024
OPERATORS_PATH = "/understudy/"  # of gateways


class Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class ControlReply(NamedTuple):
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    def document(self) -> Any:
        """The body as JSON. Raises PROTOCOL: whoever answered isn't what we asked for."""
        try:
            return msgspec.json.decode(self.body) if self.body else {}
        except msgspec.DecodeError as error:
            raise CommandError(
                Code.PROTOCOL,
                f"the answer (HTTP {self.status}) is not JSON",
                "is something else listening at this address?",
            ) from error


class Access(NamedTuple):
    """How to be let in, and whom to believe."""

    headers: Mapping[str, str]
    ca: str  # PEM file of those who may sign a server's certificate; empty: whom the system trusts


OPEN_ACCESS = Access({}, "")


def gateway_access(api_key_file: Path | None = None, ca: Path | None = None) -> Access:
    """Options before UNDERSTUDY_API_KEY and UNDERSTUDY_CA. The key is never an option: `ps` shows those."""
    key = ""
    if api_key_file is not None:
        key = read_secret(f"file:{api_key_file}").decode("ascii", "replace").strip()
    elif "UNDERSTUDY_API_KEY" in os.environ:
        key = read_secret("env:UNDERSTUDY_API_KEY").decode("ascii", "replace").strip()
    if not key.isprintable() or not key.isascii():
        raise CommandError(Code.CONFIG, "the API key is not a line of printable ASCII")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return Access(headers, str(ca or os.environ.get("UNDERSTUDY_CA", "")))


class Servers:
    """One kind of server at one or more addresses, tried in order until one can be reached.

    `source` says where the addresses come from, for the message when none answers. `cluster`: whose they have
    to be; a controller of another one does nothing that it is asked. `data_dir`: that cluster's, where the
    operator's token is.
    """

    def __init__(
        self,
        urls: Sequence[str],
        what: str,
        source: str,
        timeout_s: float = TIMEOUT_S,
        access: Access = OPEN_ACCESS,
        cluster: str = "",
        data_dir: Path | None = None,
    ) -> None:
        self.urls = tuple(_checked(url) for url in urls)
        self.what = what
        self.source = source
        self.timeout_s = timeout_s
        self.access = access
        self.cluster = cluster
        self.data_dir = data_dir

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        upload: tuple[Readable, int] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> ControlReply:
        """The answer of the first server that can be reached, whatever its status.

        `body` is sent as JSON; `upload` (content, size in bytes) as it is. Raises UNAVAILABLE when nobody
        can be reached, TIMEOUT when one was reached and did not answer in time, CONFLICT when it is another
        cluster's.
        """
        content: Any = None
        sent_headers = {"Accept": "application/json", **self.access.headers, **(headers or {})}
        if self.cluster:
            sent_headers[CLUSTER_HEADER] = self.cluster
        if upload is not None:
            content = upload[0]
            sent_headers |= {"Content-Type": "application/octet-stream", "Content-Length": str(upload[1])}
        elif body is not None:
            content = body if isinstance(body, bytes) else msgspec.json.encode(body)
            sent_headers["Content-Type"] = "application/json"
        failures: list[str] = []
        limit_s = timeout_s or self.timeout_s
        for url in self.urls:
            try:
                connection = _connect(url, limit_s, self.access.ca)
            except ssl.SSLError as error:
                raise _distrust(url, error) from error
            except OSError as error:
                failures.append(f"{url} ({_reason(error)})")
                continue
            try:
                target, token = urlsplit(url).path + path, self._token(url, path, connection.sock)
                reply = _exchange(connection, method, target, content, {**token, **sent_headers})
                if reply.status == HTTPStatus.UNAUTHORIZED and token and "Authorization" in sent_headers:
                    # A key for other gateways, such as the environment's; this one has none.
                    connection.close()
                    reply = _exchange(connection, method, target, content, {**sent_headers, **token})
            except TimeoutError as error:
                what = f"{url} did not answer {method} {path} within {limit_s:g} s"
                raise CommandError(Code.TIMEOUT, what) from error
            except ssl.SSLError as error:
                raise _distrust(url, error) from error
            except (OSError, http.client.HTTPException) as error:
                if method != "GET":
                    what = f"the connection to {url} broke during {method} {path} ({_reason(error)})"
                    raise CommandError(
                        Code.LINK_LOST, what, "it may have been done: look, then repeat"
                    ) from error
                failures.append(f"{url} ({_reason(error)})")
            else:
                if other := reply.headers.get(CLUSTER_HEADER.lower()):
                    raise _misdirected(url, other, self.cluster)
                return reply
            finally:
                connection.close()
        raise CommandError(
            Code.UNAVAILABLE,
            f"no {self.what} answers at {', '.join(failures)}, {self.source}",
            f"start the cluster with `understudy up CLUSTER.toml`, or name a {self.what}'s address "
            f"with {'--gateway' if self.what == 'gateway' else '--url'} or --cluster FILE",
        )

    def _token(self, url: str, path: str, link: socket.socket) -> Mapping[str, str]:
        """The operator's, where it is wanted. Looked up each time: the role that makes it may just begin.

        One that was found is of a cluster of ours: no other user who took its port is told it.
        """
        if self.what != "controller" and not path.startswith(OPERATORS_PATH):
            return {}
        token = known_token(url, self.data_dir)
        if token and not given_token() and (user := stranger_behind(link)) is not None:
            what = f"a process of user {user} answers at {url}, who isn't told the token of a cluster of ours"
            hint = f"stop it; if that user's cluster is meant, {VARIABLE} gives its token"
            raise CommandError(Code.UNAUTHENTICATED, what, hint)
        return {"Authorization": f"Bearer {token}"} if token else {}

    def each(self) -> list[Servers]:
        """Every one for itself."""
        return [
            Servers([url], self.what, self.source, self.timeout_s, self.access, self.cluster, self.data_dir)
            for url in self.urls
        ]

    def get(self, path: str, **query: Any) -> Any:
        given = {name: value for name, value in query.items() if value not in (None, "")}
        return self.ask("GET", f"{path}?{urlencode(given)}" if given else path)

    def ask(self, method: str, path: str, *, body: Any = None, timeout_s: float | None = None) -> Any:
        """The answer's document. An answer that is an error is raised as what it says."""
        reply = self.call(method, path, body=body, timeout_s=timeout_s)
        if reply.status >= 400:
            raise failure(reply)
        return reply.document()


def failure(reply: ControlReply) -> UnderstudyError:
    """What an error answer says; the status decides where it has no code that we know."""
    try:
        document = reply.document()
    except UnderstudyError:
        document = {}
    if not isinstance(document, dict):
        document = {}
    message = str(document.get("error") or document.get("detail") or f"HTTP {reply.status}")
    try:
        code = Code(document.get("code") or reply.headers.get("understudy-code", ""))
    except ValueError:
        code = _CODES.get(reply.status, Code.INTERNAL if reply.status >= 500 else Code.INVALID_ARGUMENT)
    if code is Code.UNAUTHENTICATED:
        return CommandError(
            code,
            message,
            "a gateway with [auth] wants --api-key-file FILE or UNDERSTUDY_API_KEY; all else the operator's "
            "token, which is found with --cluster FILE, or given as UNDERSTUDY_TOKEN",
        )
    return UnderstudyError(code, message)


_CODES = {
    401: Code.UNAUTHENTICATED,
    403: Code.FORBIDDEN,
    404: Code.NOT_FOUND,
    408: Code.TIMEOUT,
    409: Code.CONFLICT,
    413: Code.TOO_LARGE,
    503: Code.UNAVAILABLE,
    504: Code.TIMEOUT,
}


def segment(name: str) -> str:
    """`name` as one part of a path."""
    return quote(name, safe="")


def cluster_controllers(config: ClusterConfig, *, source: str, timeout_s: float = TIMEOUT_S) -> Servers:
    urls = [f"http://{c.http}" for c in config.controllers]
    return Servers(urls, "controller", source, timeout_s, cluster=config.name, data_dir=Path(config.data_dir))


def cluster_gateways(
    config: ClusterConfig,
    *,
    source: str,
    access: Access,
    names: Collection[str] = (),
    timeout_s: float = TIMEOUT_S,
) -> Servers:
    """Those with `names`, or all of them."""
    chosen = [config.gateway_named(name) for name in names] or config.gateways
    urls = [gateway_url(gateway) for gateway in chosen]
    return Servers(urls, "gateway", source, timeout_s, access, data_dir=Path(config.data_dir))


def gateway_url(gateway: GatewayConfig) -> str:
    return f"{'https' if gateway.tls else 'http'}://{gateway.http}"


def _checked(url: str) -> str:
    whole = url if "://" in url else f"http://{url}"
    parts = urlsplit(whole)
    try:
        port_ok = parts.port is None or parts.port > 0
    except ValueError:
        port_ok = False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_ok:
        raise CommandError(Code.CONFIG, f"{url!r} is not an address", "an address is http://HOST:PORT")
    return whole.rstrip("/")


def _connect(url: str, timeout_s: float, ca: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    host = parts.hostname or ""
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(
            host, parts.port, timeout=timeout_s, blocksize=UPLOAD_BLOCK_BYTES, context=_trusting(ca)
        )
    else:
        connection = http.client.HTTPConnection(
            host, parts.port, timeout=timeout_s, blocksize=UPLOAD_BLOCK_BYTES
        )
    connection.connect()
    return connection


def _trusting(ca: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca or None)
    except OSError as error:  # ssl.SSLError is one
        raise CommandError(Code.CONFIG, f"--ca: {ca} can't be read: {_reason(error)}") from error


def _distrust(url: str, error: ssl.SSLError) -> CommandError:
    """One of us does not believe the other; asking somebody else is no answer to that."""
    reason = getattr(error, "verify_message", "") or _reason(error)
    what = f"no TLS connection to {url}: {reason}"
    return CommandError(Code.UNAUTHENTICATED, what, "name who signed its certificate with --ca FILE")


def _misdirected(url: str, other: str, cluster: str) -> CommandError:
    what = f"{urlsplit(url).netloc} is cluster {other!r}, not {cluster!r}"
    hint = f"give the controller of {cluster!r} another port (controllers.http), or stop {other!r}"
    return CommandError(Code.CONFLICT, what, hint)


def _exchange(
    connection: http.client.HTTPConnection, method: str, path: str, content: Any, headers: Mapping[str, str]
) -> ControlReply:
    # A server that refuses an upload answers and closes before it has read everything.
    with contextlib.suppress(BrokenPipeError):
        connection.request(method, path, body=content, headers=dict(headers))
    response = connection.getresponse()
    names = {name.lower(): value for name, value in response.getheaders()}
    return ControlReply(response.status, names, response.read())


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
