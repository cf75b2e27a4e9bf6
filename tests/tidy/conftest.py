"""The parsed tree that the rules look at. Parsed once; the whole level has a second."""

from __future__ import annotations

import ast
import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from our_files import files_in

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Module:
    path: str  # relative to the root of the repository
    name: str  # dotted, as it is imported
    text: str = field(repr=False)
    tree: ast.Module = field(repr=False)
    nodes: tuple[ast.AST, ...] = field(repr=False)  # every node of `tree`

    def imports(self) -> Iterator[tuple[int, str]]:
        """(line, dotted name) of everything imported anywhere in the module, also inside functions."""
        for node in self.nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield node.lineno, alias.name
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    yield node.lineno, f"{node.module}.{alias.name}"


def parse(path: Path) -> Module:
    relative = path.relative_to(ROOT)
    dotted = ".".join(relative.with_suffix("").parts).removeprefix("src.").removesuffix(".__init__")
    text = path.read_text()
    tree = ast.parse(text, filename=str(relative))
    return Module(str(relative), dotted, text, tree, tuple(ast.walk(tree)))


def parse_all(*folders: str) -> list[Module]:
    gc.disable()  # a million new objects and no garbage among them: collections take half of the time
    try:
        return [parse(path) for folder in folders for path in files_in(ROOT / folder) if path.suffix == ".py"]
    finally:
        gc.enable()


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def src() -> list[Module]:
    return parse_all("src")


@pytest.fixture(scope="session")
def around() -> list[Module]:
    """Everything that isn't shipped: tests, benchmarks, generators, examples."""
    return parse_all("tests", "benchmarks", "docs", "examples")
