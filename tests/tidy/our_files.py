"""What is in the repository: not what clusters leave there that run in an example's folder."""

from __future__ import annotations

from pathlib import Path

DATA = "understudy-data"


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and DATA not in path.parts)
