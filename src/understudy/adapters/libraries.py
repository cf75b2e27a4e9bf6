"""Whether the libraries that are installed are as new as our own metadata demands.

Imports the standard library only: the beginning of a zygote asks before anything else is imported.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import re

REQUIREMENT = re.compile(r"([\w.-]+)(?:\[\w+\])?>=([\d.]+)(?:;extra=='(\w+)')?")


def first_outdated(*extras: str) -> tuple[str, str, str] | None:
    """Name, version and least version of one that is too old: of all installations, or of these extras."""
    for line in importlib.metadata.requires("understudy") or ():
        needed = REQUIREMENT.fullmatch(line.replace(" ", "").replace('"', "'"))
        if needed is None or (needed[3] and needed[3] not in extras):
            continue
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found = importlib.metadata.version(needed[1])
            if _numbers(found) < _numbers(needed[2]):
                return needed[1], found, needed[2]
    return None


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])]
