"""What a model's source says of its class without being run, and how what is missing is told."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from understudy.wire.records import TensorSpec
from understudy.worker.runtimes.contract import load_failed

METHODS = ("load", "predict")
_Scope = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


class PythonOptions(msgspec.Struct, forbid_unknown_fields=True):
    class_: str = msgspec.field(default="Model", name="class")


@dataclass
class ClassFacts:
    """`unknown`: what only running it would tell. A side is None where that is so of it."""

    mistakes: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    inputs: tuple[TensorSpec, ...] | None = None
    outputs: tuple[TensorSpec, ...] | None = None


def read_class(source: Path, wanted: str) -> ClassFacts:
    """Raises LOAD_FAILED for what isn't Python, or can't be a declaration."""
    try:
        tree = ast.parse(source.read_bytes())
    except (SyntaxError, ValueError, RecursionError) as error:
        raise load_failed(f"{source.name} is not valid Python: {error}") from error
    bound = set(_bound(tree))
    classes = {node.name: node for node in _level(tree) if isinstance(node, ast.ClassDef)}
    facts = ClassFacts()
    if wanted not in classes:
        if bound & {wanted, "*", "__getattr__"}:
            facts.unknown.append(f"{source.name} gets its {wanted!r} from elsewhere: it isn't looked at")
        else:
            facts.mistakes.append(no_class(source.name, wanted, list(classes)))
        return facts
    class_ = classes[wanted]
    has = set(_bound(class_))
    inherits = bool(class_.keywords or class_.decorator_list) or any(
        not (isinstance(base, ast.Name) and base.id == "object") for base in class_.bases
    )
    for method in METHODS if not inherits else ():
        if method not in has:
            facts.mistakes.append(no_method(source.name, wanted, method, has))
    later = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | (bound & {"setattr"})
    for side in ("inputs", "outputs"):
        if side in has or not (inherits or side in later):
            setattr(facts, side, _literal(class_, side))
    return facts


def no_class(file: str, wanted: str, classes: Sequence[str]) -> str:
    hint = ""
    if len(classes) == 1:
        hint = f'; for the one that it has: options = {{ class = "{classes[0]}" }}'
    elif classes:
        hint = f"; it has {', '.join(classes[:5])}, and options = {{ class = ... }} says which"
    return f"{file} has no class {wanted!r}{hint}"


def no_method(file: str, class_: str, method: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(method, sorted(names), n=1)
    hint = f"; should {near[0]!r} be it?" if near else ""
    return f"class {class_!r} in {file} has no method {method!r}{hint}"


def declared(said: Any, side: str) -> tuple[TensorSpec, ...]:
    """What a class says of itself: `inputs = [("x", "FP32", [-1, 4])]`. A manifest may say it instead."""
    if not isinstance(said, list | tuple):
        return ()  # of another use
    try:
        return tuple(TensorSpec(*msgspec.convert(each, tuple[str, str, tuple[int, ...]])) for each in said)
    except msgspec.ValidationError as error:
        raise load_failed(f'{side} of the class: {error}; such as [("x", "FP32", [-1, 4])]') from error


def _literal(class_: ast.ClassDef, side: str) -> tuple[TensorSpec, ...] | None:
    """None for what isn't written out, and () for what isn't there."""
    values = []
    for node in _level(class_):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == side for target in targets):
                values.append(node.value)
    if not values:
        return () if side not in set(_bound(class_)) else None
    if values[-1] is None:
        return ()  # an annotation alone
    try:
        said = ast.literal_eval(values[-1])
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return declared(said, side)


def _level(node: ast.AST) -> Iterator[ast.AST]:
    """What is in a module or class, but not in the functions and classes in it."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, _Scope):
            yield from _level(child)


def _bound(scope: ast.AST) -> Iterator[str]:
    for node in _level(scope):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.alias):
            yield node.asname or node.name.partition(".")[0]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
