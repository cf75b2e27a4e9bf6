"""A noun that is exported means one thing, and modules know each other in one direction only."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

# Two packages may give these names to their own thing, each for its reason.
MEAN_TWO_THINGS = {
    "Answer": "a client's users and the Open Inference Protocol both have no other word for it",
    "Entry": "of a table; neither leaves its module but to whoever fills it",
    "Environments": "of models' packages: what a node decides about them, and who makes them",
    "Model": "a Python runtime looks for a class of this name",
    "Node": "the protocol of graphs (ONNX) calls an operator's place so",
    "Outcome": "of a failure in a stored record, and of a rehearsal",
    "Output": "the Open Inference Protocol's, and a command's",
    "Rehearsed": "a message, and what it is made from",
    "Replica": "the one thing, as each of those who deal with it knows it",
    "Request": "the one thing, as gateway and worker know it",
    "Save": "an event of two machines",
    "Started": "an event of two machines",
    "Tick": "an event of two machines",
}


def test_one_noun_means_one_thing(src: list[Any]) -> None:
    packages: dict[str, set[str]] = defaultdict(set)
    for module in src:
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                packages[node.name].add(_package(module.name))
    twice = {name: sorted(where) for name, where in packages.items() if len(where) > 1}
    told = [f"{name}: in {', '.join(where)}" for name, where in twice.items() if name not in MEAN_TWO_THINGS]
    assert not told, "rename one of them:\n" + "\n".join(sorted(told))


def test_modules_import_in_one_direction(src: list[Any]) -> None:
    """Also where an import hides in a function. What only the type checker reads may go in circles."""
    modules = {module.name for module in src}
    graph = {
        module.name: {_module(name, modules) for name in _imported(module.tree)} - {"", module.name}
        for module in src
    }
    assert not list(_circles(graph))
    packages: dict[str, set[str]] = {_package(name): set() for name in modules}
    for name, others in graph.items():
        packages[_package(name)] |= {_package(other) for other in others} - {_package(name), "understudy"}
    assert not list(_circles(packages))


def _package(module: str) -> str:
    parts = module.split(".")
    if len(parts) == 1:
        return module
    return ".".join(parts[1:3]) if parts[1] == "core" and len(parts) > 3 else parts[1]


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from _imported(node)


def _module(name: str, modules: set[str]) -> str:
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def _circles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """Those that reach each other."""
    reach = {name: _reachable(name, graph) for name in graph}
    seen: set[str] = set()
    for name in sorted(graph):
        circle = {other for other in reach[name] if name in reach.get(other, ())}
        if name in circle and name not in seen:
            seen |= circle
            yield sorted(circle)


def _reachable(name: str, graph: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    left: Iterable[str] = graph[name]
    while left:
        found.update(left)
        left = {other for at in left for other in graph.get(at, ())} - found
    return found
