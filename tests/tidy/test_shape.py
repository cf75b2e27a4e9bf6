"""Sizes, names and the patterns that hide failures."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any, TypeGuard

FUNCTION_LINES_MAX = 70
CLASS_MAX = (250, 20, 20)  # lines, methods, attributes
RECORDS = {"Settings"}  # roots of tables, whose fields are what they are for
# Classes beyond that, each with the reason why it is one thing.
LARGE: dict[str, str] = {
    "understudy.core.gateway.machine.Gateway": "what each event changes in the facts of routing",
    "understudy.core.planning.heuristic._Packing": "sums over bins that every step of packing changes",
    "understudy.gateway.http.HttpConnection": "one state, shared by all callbacks of one parser",
    "understudy.gateway.process.GatewayProcess": "links, timers and effects around one machine",
    "understudy.local.supervisor.Cluster": "what is done to one set of processes, and what is asked of it",
}
VAGUE = {"utils", "util", "helpers", "helper", "manager", "base", "common", "misc"}
UNFINISHED = re.compile(r"\b(" + "|".join(["FIX" + "ME", "TO" + "DO", "X" + "XX"]) + r")\b")


def test_functions_are_short(src: list[Any], around: list[Any]) -> None:
    long = [
        f"{module.path}:{node.lineno}: {node.name} has {lines} lines, {FUNCTION_LINES_MAX} at most"
        for module in src + around
        for node in module.nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert not long, "\n".join(long)


def test_classes_are_one_thing(src: list[Any]) -> None:
    sizes = {f"{m.name}.{n.name}": _size(n) for m in src for n in m.nodes if isinstance(n, ast.ClassDef)}
    large = {name: size for name, size in sizes.items() if any(map(int.__gt__, size, CLASS_MAX))}
    untold = [f"{name}: (lines, methods, attributes) {large[name]}" for name in large.keys() - LARGE.keys()]
    assert not untold, f"beyond {CLASS_MAX}, two things or a reason in LARGE:\n" + "\n".join(sorted(untold))
    assert LARGE.keys() <= large.keys(), f"no longer large: {sorted(LARGE.keys() - large.keys())}"


def _size(class_: ast.ClassDef) -> tuple[int, int, int]:
    """Lines, methods that aren't properties, attributes of an instance."""
    methods = [
        node
        for node in class_.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not any(ast.unparse(d) == "property" for d in node.decorator_list)
    ]
    stored = {
        node.attr
        for node in ast.walk(class_)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name) and node.value.id == "self"
    }  # fmt: skip
    fields = {
        n.target.id for n in class_.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    }
    is_record = any("Struct" in ast.unparse(base) or ast.unparse(base) in RECORDS for base in class_.bases)
    attributes = 0 if is_record else len(stored | fields)
    return (class_.end_lineno or 0) - class_.lineno + 1, len(methods), attributes


def test_modules_have_telling_names(src: list[Any], around: list[Any]) -> None:
    vague = [m.path for m in src + around if VAGUE & set(Path(m.path).stem.split("_"))]
    assert not vague, f"these names say nothing: {vague}"


def test_modules_say_what_they_are(src: list[Any], around: list[Any]) -> None:
    silent = [m.path for m in src + around if m.text.strip() and not ast.get_docstring(m.tree)]
    assert not silent, f"no docstring at the top of: {silent}"


def test_tasks_have_an_owner(src: list[Any]) -> None:
    """A task outside a TaskGroup loses its exceptions and outlives whoever wanted it."""
    bare = []
    for module in src:
        for node in module.nodes:
            if not isinstance(node, ast.Attribute | ast.Name):
                continue
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            owner = ast.unparse(node.value) if isinstance(node, ast.Attribute) else ""
            on_loop = owner == "asyncio" or "loop" in owner
            if name == "ensure_future" or (name == "create_task" and (on_loop or not owner)):
                bare.append(f"{module.path}:{node.lineno}: {owner}.{name}")
    assert not bare, "\n".join(bare)


def test_no_process_of_ours_runs_what_lies_where_it_is_started(src: list[Any]) -> None:
    """`python -m` looks for modules in the working directory first, which may be a model's."""
    open_ = [
        f"{module.path}:{node.lineno}: -P has to come before -m"
        for module in src
        for node in module.nodes
        if isinstance(node, ast.List)
        and any(isinstance(each, ast.Constant) and each.value == "-m" for each in node.elts)
        and not any(isinstance(each, ast.Constant) and each.value == "-P" for each in node.elts)
    ]
    assert not open_, "\n".join(open_)


def test_failures_are_not_swallowed(src: list[Any]) -> None:
    swallowed = []
    for module in src:
        for node in module.nodes:
            if isinstance(node, ast.ExceptHandler) and _is_broad(node.type) and _does_nothing(node.body):
                swallowed.append(f"{module.path}:{node.lineno}: a broad except that does nothing")
            if _calls_suppress(node) and any(_is_broad(arg) for arg in node.args):
                swallowed.append(f"{module.path}:{node.lineno}: a broad suppress")
    assert not swallowed, "\n".join(swallowed)


def _calls_suppress(node: ast.AST) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress")


def _is_broad(type_: ast.expr | None) -> bool:
    return type_ is None or (isinstance(type_, ast.Name) and type_.id in {"Exception", "BaseException"})


def _does_nothing(body: list[ast.stmt]) -> bool:
    return all(isinstance(s, ast.Pass | ast.Continue) or _is_constant(s) for s in body)


def _is_constant(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def test_nothing_is_left_for_later(root: Path, src: list[Any], around: list[Any]) -> None:
    texts = [(m.path, m.text) for m in src + around]
    texts += [(name, (root / name).read_text()) for name in ("Makefile", "README.md", "pyproject.toml")]
    left = [
        f"{path}:{number}: {line.strip()}"
        for path, text in texts
        for number, line in enumerate(text.splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    assert not left, "\n".join(left)


def test_quick_tests_wait_for_nothing(around: list[Any]) -> None:
    """A sleep is a guess. `sleep(0)` is none: it lets the loop turn once."""
    sleeps = [
        f"{module.path}:{node.lineno}"
        for module in around
        if module.path.startswith(("tests/unit/", "tests/property/"))
        for node in module.nodes
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith("sleep")
        and [ast.unparse(arg) for arg in node.args] != ["0"]
    ]
    assert not sleeps, "\n".join(sleeps)


def test_fakes_are_written_by_hand(around: list[Any]) -> None:
    mocks = [f"{m.path}:{line}" for m in around for line, name in m.imports() if "mock" in name.split(".")]
    assert not mocks, "\n".join(mocks)
