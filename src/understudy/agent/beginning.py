"""How a zygote begins in an environment: `python -P -m understudy.agent.beginning ARGUMENT [FOLDER]`.

Understudy is always that of the installation; everything else is the folder's where that has it. Whether that
will do for Understudy itself is found out before any of it is imported: so nothing else is imported.
"""

from __future__ import annotations

import site
import sys

from understudy.adapters.libraries import first_outdated


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
    if outdated := first_outdated():
        raise ImportError("{} is {} here, and Understudy needs {} or newer".format(*outdated))


if __name__ == "__main__":
    main()
