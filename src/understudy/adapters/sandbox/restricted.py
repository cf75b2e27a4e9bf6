"""The second tier: the machine's files, processes and network, of which Landlock allows a worker little.

Needs no privilege, so it holds in containers too. What it can't do: hide which processes there are, and bound
what the scratch directory takes of the disk beyond a file's size.
"""

from __future__ import annotations

import os

from understudy.adapters.sandbox import kernel, landlock, limits, seccomp
from understudy.adapters.sandbox.walls import (
    DEVICES,
    Walls,
    accelerators,
    covers,
    readable_places,
    settle,
    within,
)

_DEVICE = landlock.OF_FILES


def restrict(walls: Walls) -> None:
    """This process, and what it starts. Raises `OSError`."""
    places = readable_places(walls)
    own = [path for path in places if within(path, walls.hidden)]
    rules = [(path, landlock.READ) for path in (*_without(places, walls.hidden), *own)]
    rules += [("/proc", landlock.READ), (walls.folder, landlock.READ)]
    rules += [(f"/dev/{name}", _DEVICE) for name in DEVICES]
    rules += [(path, _DEVICE | landlock.READ_DIR) for path in accelerators()]
    rules += [(path, ~0) for path in (walls.scratch, *walls.writable)]
    settle(walls.scratch)
    limits.limit(walls)
    kernel.drop_bounding_set()
    limits.give_up_privileges()
    landlock.restrict(rules, network=walls.network)
    seccomp.refuse_calls(seccomp.INTERNET if walls.network else (), shares_machine=True)


def _without(paths: list[str], hidden: tuple[str, ...]) -> list[str]:
    """What was allowed can't be taken back below: so of a path that holds something hidden, the rest."""
    found: list[str] = []
    for path in paths:
        if within(path, hidden):
            continue
        if any(covers(path, each) for each in hidden) and not os.path.islink(path):
            found += _without([os.path.join(path, name) for name in sorted(os.listdir(path))], hidden)
        else:
            found.append(path)
    return found
