"""Names live in one place each, and a name that nobody uses is gone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from understudy.registry import EVENTS
from understudy.settings import Settings
from understudy.wire.errors import Code

EVENT_NAME = re.compile(r"[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*")
LOG_METHODS = {"debug", "info", "warning", "error", "exception", "critical"}

UNIT = re.compile(r"(^|_)(us|ms|s|mb|bytes|rows|fraction|factor|cost)(_total)?(_max|_min)?$")
# Numbers without a unit: counts of what the name says, and ratios that have a name of their own.
UNITLESS = {
    "cores", "connections_max", "headers_max", "pipeline_max",
    "inflight_max", "inflight_min", "inflight_total_max",
    "waiting_max", "lag_inflight_min", "clients_max", "burst", "budget_min",
    "attempts_max", "poison_kills", "deaths_max", "consecutive_failures", "calls_min", "heartbeats_missed",
    "readmit_heartbeats", "events_max", "threads", "processes", "blank_workers", "probe_failures_restart",
    "crash_loop_count", "file_count", "versions_max", "replicas",
    "calls_max", "streams_max", "watches_max", "stream_pipeline_max", "tokens_max",
    "manifests_max", "removals_max",
    "uploads_max", "events_pending_max", "deployments_max", "profile_attempts_max",
    "tasks_max",
    "entries_max", "environments_max", "failures_min", "failures_max", "recheck_share", "tolerance",
    "accuracy", "deviations", "factor", "gap", "quantile", "weight",
}  # fmt: skip


def _settings(type_: type[msgspec.Struct] = Settings) -> Iterator[type[msgspec.Struct]]:
    for child in type_.__subclasses__():
        yield child
        yield from _settings(child)


def test_numbers_in_the_configuration_have_units() -> None:
    unclear = [
        f"{type_.__name__}.{field.name}"
        for type_ in _settings()
        for field in msgspec.structs.fields(type_)
        if isinstance(
            msgspec.inspect.type_info(field.type), msgspec.inspect.IntType | msgspec.inspect.FloatType
        )
        and not UNIT.search(field.name)
        and field.name not in UNITLESS
    ]
    assert not unclear, f"end the name in its unit: {unclear}"


def test_events_are_registered(src: list[Any]) -> None:
    unknown = [
        f"{module.path}:{line}: {name}"
        for module in src
        for line, name in _event_names(module)
        if name not in EVENTS
    ]
    assert not unknown, "list these in registry.EVENTS:\n" + "\n".join(unknown)


def test_registered_events_happen(src: list[Any]) -> None:
    texts = {
        node.value
        for module in src
        if module.name != "understudy.registry"
        for node in module.nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    never = sorted(EVENTS.keys() - texts)
    assert not never, f"nothing ever says: {never}"


def test_events_are_named_and_described_alike() -> None:
    odd = [name for name, what in EVENTS.items() if not EVENT_NAME.fullmatch(name) or not what.strip()]
    assert not odd, f"an event is noun.verb_past with a description: {odd}"


def _event_names(module: Any) -> Iterator[tuple[int, str]]:
    """Names given to a logger, to Event(...) or as `kind=` to anything else."""
    for node in module.nodes:
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        candidates = [keyword.value for keyword in node.keywords if keyword.arg == "kind"]
        if called in LOG_METHODS or called == "Event":
            candidates += node.args[:1]
        for value in candidates:
            text = value.value if isinstance(value, ast.Constant) else None
            if isinstance(text, str) and EVENT_NAME.fullmatch(text):
                yield value.lineno, text


# Called by libraries, never by us: asyncio protocols, httptools callbacks, ast and logging hooks.
CALLED_FROM_OUTSIDE = re.compile(
    r"__\w+__|on_\w+|visit_\w+|connection_(made|lost)|(data|eof|datagram|error)_received"
    r"|(pause|resume)_writing|get_buffer|buffer_updated|pipe_\w+|process_exited|redirect_request|main|emit|format"
)


def test_no_name_is_dead(src: list[Any], around: list[Any]) -> None:
    used: set[str] = set()
    for module in src + around:
        used.update(_names_used(module))
    dead = [
        f"{module.path}:{line}: {name}"
        for module in src
        for line, name in _names_defined(module.tree)
        if name not in used and not CALLED_FROM_OUTSIDE.fullmatch(name)
    ]
    assert not dead, "defined and never used:\n" + "\n".join(dead)


def _names_used(module: Any) -> Iterator[str]:
    for node in module.nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.value  # getattr, annotations in quotes


def _names_defined(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Functions, classes, constants of the module, and methods. Decorated ones belong to a framework."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((node.lineno, t.id) for t in targets if isinstance(t, ast.Name))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not node.decorator_list:
                yield node.lineno, node.name
            if isinstance(node, ast.ClassDef):
                yield from _methods(node)


def _methods(class_: ast.ClassDef) -> Iterator[tuple[int, str]]:
    for node in class_.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
            if decorators <= {"property", "classmethod", "staticmethod"}:
                yield node.lineno, node.name


def test_every_setting_is_read(src: list[Any]) -> None:
    """A setting that nothing reads promises a limit that isn't there."""
    read = {node.attr for module in src for node in module.nodes if isinstance(node, ast.Attribute)}
    idle = [
        f"{type_.__name__}.{name}"
        for type_ in _settings()
        for name in type_.__struct_fields__
        if name not in read
    ]
    assert not idle, f"no code reads these settings: {idle}"


def test_every_error_code_is_raised(src: list[Any]) -> None:
    raised = {
        node.attr
        for module in src
        if module.name != "understudy.wire.errors"
        for node in module.nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Code"
    }
    # These have exception classes of their own.
    raised |= {"INVALID_ARGUMENT", "PROTOCOL", "CONFIG"}
    idle = [code.name for code in Code if code.name not in raised]
    assert not idle, f"nothing fails with these codes: {idle}"


def test_no_state_is_a_bare_string(src: list[Any]) -> None:
    """Of what has a lifecycle: it is compared with, and becomes, a member of an enum."""
    bare = [
        f"{module.name}:{node.lineno}"
        for module in src
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Compare | ast.Assign | ast.AnnAssign) and _is_bare_state(node)
    ]
    assert not bare, "use a phase of core.lifecycle, or the like:\n" + "\n".join(bare)


def _is_bare_state(node: ast.Compare | ast.Assign | ast.AnnAssign) -> bool:
    match node:
        case ast.Compare(left, _, values):
            places = [left]
        case ast.Assign(places, value):
            values = [value]
        case ast.AnnAssign(place, _, value):
            return isinstance(place, ast.Name) and place.id == "state" and _is_text(value)
    texts = [each for value in values for each in getattr(value, "elts", [value])]
    return any(map(_is_state, places)) and any(map(_is_text, texts))


def _is_state(place: ast.expr) -> bool:
    return isinstance(place, ast.Attribute) and place.attr in ("state", "_state")


def _is_text(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value != ""
