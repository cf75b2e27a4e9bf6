"""Which files an artifact is made of, by what its runtime says of them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from understudy.settings.runtimes import RUNTIMES


def contents(path: Path, runtime: str) -> dict[str, Path]:
    """Name in the package -> file, in the order of names; empty for a file that goes as it is.

    Raises `ConfigError` for a file that needs others which aren't there.
    """
    facts = RUNTIMES[runtime]
    if path.is_dir():
        return _files(path)
    if not facts.data_files:
        return {}
    module, _, name = facts.data_files.partition(":")
    data_files: Callable[[Path], list[str]] = getattr(import_module(module), name)
    beside = data_files(path)
    if not beside:
        return {}
    entry = path.name if facts.entry in beside else facts.entry
    return dict(sorted({entry: path, **{file: path.parent / file for file in beside}}.items()))


def not_a_model(path: Path, runtime: str) -> str:
    """What a directory lacks; empty if nothing."""
    facts = RUNTIMES[runtime]
    names = sorted(file.name for file in path.iterdir() if file.is_file())
    if facts.entry_in(names) is not None:
        return ""
    others = [name for name in names if facts.suffix and name.endswith(facts.suffix)]
    if others:
        return f"has {' and '.join(others[:3])}, and none is {facts.entry}"
    return f"has no {facts.entry}"


def _files(folder: Path) -> dict[str, Path]:
    found = {}
    for file in sorted(folder.rglob("*"), key=lambda f: f.relative_to(folder).as_posix()):
        inside = file.relative_to(folder)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in inside.parts)
        if file.is_file() and not hidden:
            found[inside.as_posix()] = file
    return found
