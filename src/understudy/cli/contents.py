"""Which files an artifact is made of, by what its runtime says of them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from understudy.cli import kinds
from understudy.settings.runtimes import RUNTIMES
from understudy.wire.errors import ConfigError


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
    """All that is in a directory, and what links lead to; without what is hidden or compiled."""
    found: dict[str, Path] = {}
    for above, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        parents = itertools.takewhile(lambda parent: parent != folder.parent, Path(above).parents)
        if any(os.path.samefile(above, parent) for parent in parents):
            raise ConfigError(f"{above}: can't be packed: the link leads into a directory that it is in")
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        for name in files:
            file = Path(above, name)
            if name.startswith("."):
                continue
            if not file.is_file():
                what = kinds.describe(file) if file.exists() else "a link that leads nowhere"
                raise ConfigError(f"{file}: can't be packed: it is {what}")
            found[file.relative_to(folder).as_posix()] = file
    return dict(sorted(found.items()))


def _raise(error: OSError) -> None:
    raise error
