"""How a zygote begins in an environment: `python -P -m understudy.agent.beginning ARGUMENT [FOLDER]`.

Understudy is always that of the installation; everything else is the folder's where that has it. Whether that
will do for Understudy itself is found out before any of it is imported: so this imports nothing else.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import site
import sys


def main() -> None:
    if len(sys.argv) > 2:
        ours = list(sys.path)
        site.addsitedir(sys.argv[2])
        sys.path[:] = [path for path in sys.path if path not in ours] + ours
    _check_own_requirements()
    from understudy.agent import zygote

    zygote.main()


def _check_own_requirements() -> None:
    """Raises `ImportError` naming what is too old."""
    for line in importlib.metadata.requires("understudy") or ():
        needed = re.fullmatch(r"([\w.-]+)>=([\d.]+)", line.replace(" ", ""))
        if needed is None:
            continue  # for an extra, or without a least version
        name, least = needed.groups()
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found = importlib.metadata.version(name)
            if _numbers(found) < _numbers(least):
                raise ImportError(f"{name} is {found} here, and Understudy needs {least} or newer")


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])]


if __name__ == "__main__":
    main()
