"""Reads configuration files and the environment into settings; the only module that does.

One file describes a cluster; each process is told the file and its own name. Unknown fields are refused
with the nearest known name; a role that is older than its file's schema leaves them out.
"""

from __future__ import annotations

import codecs
import difflib
import functools
import hashlib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from understudy.failures import mistake_in
from understudy.settings import LINK, LINKS, PATTERNS, nearest
from understudy.settings.agent import AgentTuning
from understudy.settings.cluster import ClusterConfig
from understudy.settings.gateway import GatewayConfig
from understudy.settings.manifest import AppManifest, mistakes
from understudy.settings.security import AuthSettings
from understudy.wire.documents import shown
from understudy.wire.errors import ConfigError, cut, is_text

T = TypeVar("T")
UNIX_PATH_BYTES_MAX = 107  # unix(7)
SOCKET_NAME_BYTES = len("/w--0123456789abcdef-100000.sock")  # the longest, without the name of the role
MESSAGE_CHARS_MAX = 1000  # a mistake may quote what it is about, however long that is


def load_cluster(path: Path, unknown: list[str] | None = None) -> ClusterConfig:
    """Read and check CLUSTER.toml; fill in the directories. Raises `ConfigError`.

    Unknown fields are refused too, unless there is a list of `unknown`: then what would be said goes there.
    """
    config = read_toml(path, ClusterConfig, unknown)
    if not config.nodes:
        raise ConfigError(f"{path}: nodes: at least one [[nodes]] table is needed")
    for field in ("nodes", "gateways", "controllers"):
        names = [item.name for item in getattr(config, field)]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{path}: {field}: the name {name!r} is used twice")
    if len(config.controllers) > 1:
        raise ConfigError(f"{path}: controllers: one at most; several could not agree yet on what is true")
    for gateway in config.gateways:
        if gateway.grpc and gateway.tls is not None and gateway.tls.version_min != "1.2":
            what = f"gateways: {gateway.name!r}: tls.version_min: the gRPC library can't refuse TLS 1.2"
            raise ConfigError(f"{path}: {what}")
    if mistake := mistake_in(config.plan.survive, {node.name: node.site for node in config.nodes}):
        raise ConfigError(f"{path}: plan.survive: {mistake}")
    folder = path.resolve().parent
    data_dir = folder / config.data_dir
    roles = [item.name for field in ("nodes", "gateways", "controllers") for item in getattr(config, field)]
    artifacts_dir = folder / config.artifacts_dir if config.artifacts_dir else data_dir / "artifacts"
    for field, place in (("data_dir", data_dir), ("artifacts_dir", artifacts_dir)):
        if not is_text(str(place)):
            raise ConfigError(f"{path}: {field}: {place} is not UTF-8, in which paths are sent to others")
    return msgspec.structs.replace(
        config,
        data_dir=str(data_dir),
        artifacts_dir=str(artifacts_dir),
        run_dir=(
            str(folder / config.run_dir)
            if config.run_dir
            else _default_run_dir(data_dir, max(len(os.fsencode(name)) for name in roles))
        ),
        agent=_with_paths(config.agent, folder),
        apps=tuple(str(folder / app) for app in config.apps),
        gateways=tuple(_with_tls_in(folder, gateway) for gateway in config.gateways),
        auth=_with_files_in(folder, config.auth),
    )


def _with_tls_in(folder: Path, gateway: GatewayConfig) -> GatewayConfig:
    tls = gateway.tls
    if tls is None:
        return gateway
    client_ca = str(folder / tls.client_ca) if tls.client_ca else ""
    located = msgspec.structs.replace(
        tls, cert=str(folder / tls.cert), key=str(folder / tls.key), client_ca=client_ca
    )
    return msgspec.structs.replace(gateway, tls=located)


def _with_files_in(folder: Path, auth: AuthSettings | None) -> AuthSettings | None:
    if auth is None:
        return None
    jwt = auth.jwt
    if jwt is not None:
        jwt = msgspec.structs.replace(jwt, jwks=_located(folder, jwt.jwks))
    return msgspec.structs.replace(auth, keys=_located(folder, auth.keys), jwt=jwt)


def _located(folder: Path, reference: str) -> str:
    file = reference.removeprefix("file:")
    return reference if file == reference else f"file:{folder / file}"


def read_secret(reference: str, bytes_max: int = 4 * 1024 * 1024) -> bytes:
    """What "file:PATH" or "env:NAME" refers to, at most `bytes_max` of it.

    Raises `ConfigError`, which never holds any of the content.
    """
    kind, _, name = reference.partition(":")
    if kind == "env":
        if name not in os.environ:
            raise ConfigError(f"the environment has no {name}")
        content = os.fsencode(os.environ[name])
    elif kind == "file":
        try:
            with open(name, "rb") as file:
                content = file.read(bytes_max + 1)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a path"
            raise ConfigError(f"{name}: can't be read: {reason}") from error
    else:
        raise ConfigError("a secret is given as file:PATH or env:NAME, never by itself")
    if len(content) > bytes_max:
        raise ConfigError(f"{reference}: too large", limit_bytes=bytes_max)
    return content


def _with_paths(agent: AgentTuning, folder: Path) -> AgentTuning:
    """Paths for models are those of the cluster file, as all others."""
    sandbox = msgspec.structs.replace(
        agent.sandbox,
        readable=tuple(str(folder / path) for path in agent.sandbox.readable),
        writable=tuple(str(folder / path) for path in agent.sandbox.writable),
    )
    return msgspec.structs.replace(agent, sandbox=sandbox)


def _default_run_dir(data_dir: Path, name_bytes: int) -> str:
    """Within the data directory; where a Unix socket's path there would be too long, under /tmp.

    It follows from the data directory alone, so that roles meet whatever environment each is started from.
    """
    inside = data_dir / "run"
    if len(os.fsencode(inside)) + SOCKET_NAME_BYTES + name_bytes <= UNIX_PATH_BYTES_MAX:
        return str(inside)
    short = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:10]
    return f"/tmp/understudy-{os.getuid()}-{short}"


def load_manifest(path: Path) -> AppManifest:
    """Read and check APP.toml. Raises `ConfigError`; artifacts are not opened here."""
    return checked_manifest(read_toml(path, AppManifest), str(path))


def checked_manifest(manifest: AppManifest, source: str) -> AppManifest:
    """`manifest`, if it holds together as far as it can be told without a cluster. Raises `ConfigError`."""
    found = [f"{source}: {mistake}" for mistake in mistakes(manifest)]
    if found:
        raise ConfigError("\n".join(found))
    return manifest


def read_toml(path: Path, type_: type[T], unknown: list[str] | None = None) -> T:
    """`path` as `type_`. Raises `ConfigError`: file and field, one a line, with the nearest valid names."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    return parse_toml(text, str(path), type_, unknown)


def parse_toml(text: bytes, source: str, type_: type[T], unknown: list[str] | None = None) -> T:
    """As `read_toml`, of a text that was read from `source`."""
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ConfigError(f"{source}: is UTF-16 text; save it as UTF-8")
    try:
        raw = tomllib.loads(text.decode("utf-8-sig"))  # editors on Windows put a mark in front
    except RecursionError as error:
        raise ConfigError(f"{source}: not valid TOML: nested too deep") from error
    except ValueError as error:  # of a number with thousands of digits, say; the others are subclasses
        raise ConfigError(f"{source}: not valid TOML: {_cut(str(error))}") from error
    while True:
        try:
            return msgspec.convert(raw, type_)
        except msgspec.ValidationError as error:
            said = explain(str(error), type_)
            if unknown is not None and _leave_out(raw, str(error)):
                unknown.append(said)
                continue
            if other := _other_kind(raw, type_):
                raise ConfigError(f"{source}: is {other.replace('FILE', source)}") from error
            found = [*(unknown or ()), *_mistakes(raw, type_)]
            raise ConfigError("\n".join(f"{source}: {each}" for each in found)) from error
        except RecursionError as error:
            raise ConfigError(f"{source}: nested too deep") from error


def is_cluster(path: Path) -> bool:
    """Whether it is meant as a cluster file, mistakes and all. False where it can't be read."""
    try:
        text = path.read_bytes()
        return _is_like(tomllib.loads(text.decode("utf-8-sig")), ClusterConfig, AppManifest)
    except ValueError:
        return re.search(rb"^\s*(\[\[nodes\]\]|nodes\s*=)", text, re.MULTILINE) is not None
    except (OSError, RecursionError):
        return False


def _other_kind(raw: Any, type_: type) -> str:
    if type_ is ClusterConfig and _is_like(raw, AppManifest, ClusterConfig):
        return "the manifest of an app, not a cluster file: `understudy deploy FILE` takes it"
    if type_ is AppManifest and _is_like(raw, ClusterConfig, AppManifest):
        return "a cluster file, not the manifest of an app: `understudy up FILE` takes it"
    return ""


def _is_like(raw: dict[str, Any], one: type[msgspec.Struct], other: type[msgspec.Struct]) -> bool:
    """By the names that only one of them has, or of which only one has the like."""
    known, strange = set(one.__struct_encode_fields__), set(other.__struct_encode_fields__)
    counts = [0, 0]
    for name in raw:
        if name not in known & strange:
            near = name
            if name not in known | strange:
                near = next(iter(difflib.get_close_matches(name, sorted(known | strange), n=1)), "")
            counts[0] += near in known - strange
            counts[1] += near in strange - known
    return counts[0] > counts[1]


def _mistakes(raw: Any, type_: type) -> list[str]:
    """Everything that is wrong with `raw`, until it is more than anybody reads."""
    found: list[str] = []
    for said, value in _refusals(raw, type_, ""):
        told = explain(said, type_) + _instead(value, said)
        if told not in found and sum(map(len, found)) < MESSAGE_CHARS_MAX:
            found.append(told)
    return found


def _instead(value: Any, said: str) -> str:
    """Of text that matches no pattern: what it is, and what it may have been meant to be."""
    if not isinstance(value, str) or not any(repr(pattern) in said for pattern in PATTERNS):
        return ""
    near = nearest(value, LINKS) if repr(LINK) in said else ""
    return f", not {shown(value)}" + (f"; did you mean {near!r}?" if near else "")


def _refusals(raw: Any, type_: Any, path: str) -> Iterator[tuple[str, Any]]:
    """What the decoder says of each part of `raw`, which stands at `path`, and the part."""
    try:
        msgspec.convert(raw, type_)
        return
    except msgspec.ValidationError as error:
        at = _AT.search(str(error))
        own = f"{_AT.sub('', str(error))} - at `${path}{_below(at['path']) if at else ''}`"
    parts = list(_parts(raw, type_, path))
    yield from parts or [(own, raw)]


def _parts(raw: Any, type_: Any, path: str) -> Iterator[tuple[str, Any]]:
    type_ = _matching(raw, type_)
    if isinstance(raw, list) and get_origin(type_) is tuple:
        for index, each in enumerate(raw):
            yield from _refusals(each, get_args(type_)[0], f"{path}[{index}]")
    elif isinstance(raw, dict) and isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        fields = {field.encode_name: field for field in _fields(type_)}
        strangers = [name for name in raw if name not in fields]
        meant = {near for name in strangers for near in difflib.get_close_matches(name, sorted(fields), n=1)}
        yield from ((f"Object contains unknown field `{name}` - at `${path}`", raw) for name in strangers)
        for name, field in fields.items():
            if name in raw:
                yield from _refusals(raw[name], field.type, f"{path}.{name}")
            elif field.required and name not in meant:
                yield f"Object missing required field `{name}` - at `${path}`", raw


_fields = functools.cache(msgspec.structs.fields)  # which reads annotations anew, each time


def _matching(raw: Any, type_: Any) -> Any:
    """Of a union's members the one that is like `raw`, without its limits."""
    while get_origin(type_) is Annotated:
        type_ = get_args(type_)[0]
    if get_origin(type_) not in (Union, UnionType):
        return type_
    members = [_matching(raw, each) for each in get_args(type_)]
    if isinstance(raw, list):
        return next((each for each in members if get_origin(each) is tuple), None)
    return next((e for e in members if isinstance(e, type) and issubclass(e, msgspec.Struct)), None)


def _below(path: str) -> str:
    return path if not path or path.startswith("[") else f".{path}"


def _leave_out(raw: Any, message: str) -> bool:
    """Remove from `raw` the unknown field that `message` is about. False if it isn't about one."""
    found, at = _UNKNOWN.search(message), _AT.search(message)
    if found is None:
        return False
    try:
        for name, index in _STEP.findall(at["path"] if at else ""):
            raw = raw[int(index) if index else name]
        del raw[found["field"]]
    except (KeyError, TypeError):
        return False  # its name has what paths are written with
    return True


def _cut(message: str) -> str:
    return cut(message, MESSAGE_CHARS_MAX)


_UNKNOWN = re.compile(r"unknown field `(?P<field>[^`]*)`")
_NO_VALUE = re.compile(r"[Ii]nvalid enum value (?P<value>.*)$", re.DOTALL)
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")  # of a path: a name, or an index
_AT = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")


def explain(message: str, type_: type) -> str:
    """A validation message as `path.of.field: what is wrong`, with the nearest known name or value."""
    return _cut(_explain(message, type_))


def _explain(message: str, type_: type) -> str:
    at = _AT.search(message)
    path = at["path"] if at else ""
    what = _AT.sub("", message).removeprefix("Object ")
    unknown, no_value = _UNKNOWN.search(what), _NO_VALUE.search(what)
    if unknown:
        field = unknown["field"]
        hint = _nearest(field, getattr(_type_at(type_, path), "__struct_encode_fields__", ()))
        return f"{path + '.' if path else ''}{field}: unknown field; {hint}"
    if no_value:
        value = no_value["value"].strip("'")
        valid = _values(_type_at(type_, path))
        near = nearest(value, valid)
        hint = f"; did you mean {near!r}?" if near else ""
        return f"{path}: {value!r} is not known; valid: {', '.join(valid)}{hint}"
    if what == "Expected `array`, got `object`":
        return f"{path}: a list of tables is written [[{path}]], each time; [{path}] is one table"
    for pattern, meaning in PATTERNS.items():
        if repr(pattern) in what:
            what = meaning
    return f"{path or 'top level'}: {what[:1].lower()}{what[1:]}"


def _nearest(name: str, known: Iterable[str]) -> str:
    listed = sorted(known)
    near = difflib.get_close_matches(name, listed, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(listed)}"


def _type_at(type_: Any, path: str) -> Any:
    for part in (p for p in re.split(r"\.|\[\.\.\.\]|\[\d+\]", path) if p):
        try:
            type_ = _plain(get_type_hints(type_).get(part))
        except TypeError:
            return None
    return type_


def _plain(type_: Any) -> Any:
    """What a list, a tuple or an optional value is made of."""
    while get_origin(type_) not in (None, Literal):
        type_ = next((each for each in get_args(type_) if each not in (type(None), ...)), None)
    return type_


def _values(type_: Any) -> list[str]:
    if get_origin(type_) is Literal:
        return [str(value) for value in get_args(type_)]
    if isinstance(type_, type) and issubclass(type_, Enum):
        return [str(member.value) for member in type_]
    return []
