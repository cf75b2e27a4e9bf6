"""`python -m understudy.agent.entering ENTRANCE COMMAND...`: a command in its groups and behind Landlock.

All that it starts is there too. For what runs code that somebody else chose before there is a worker: that of
packages.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from pathlib import Path

import msgspec

from understudy.adapters.descendants import adopt_orphans, end_children
from understudy.adapters.inherited import settle_inherited
from understudy.adapters.sandbox.restricted import restrict
from understudy.adapters.sandbox.walls import Tier, Walls

END_TIMEOUT_S = 5.0


class _Entrance(msgspec.Struct, frozen=True):
    walls: Walls
    groups: tuple[str, ...]
    keep: bool


def command_behind(
    walls: Walls, groups: tuple[str, ...], command: list[str], *, keep: bool = False
) -> list[str]:
    """What is to be run for `command` to run in `groups`, which are there, and behind `walls`.

    `keep`: none of its descendants outlives it, nor the one who holds its standard input, a pipe.
    """
    if walls.tier is not Tier.LANDLOCK and not groups and not keep:
        return command
    entrance = msgspec.json.encode(_Entrance(walls, groups, keep)).decode()
    return [sys.executable, "-P", "-m", "understudy.agent.entering", entrance, *command]


def main() -> None:
    settle_inherited()
    entrance = msgspec.json.decode(sys.argv[1], type=_Entrance)
    command = sys.argv[2:]
    if entrance.keep:
        _keep()
    try:
        for group in entrance.groups:
            (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
        if entrance.walls.tier is Tier.LANDLOCK:
            restrict(entrance.walls)
        os.execv(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]} can't be run in its groups and behind walls: {error}")


def _keep() -> None:
    """Go on in a child, and end as it does: outside its groups and walls, where it has no say."""
    adopt_orphans()
    child = os.fork()
    if child == 0:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        return
    select.select([0, os.pidfd_open(child)], [], [])
    os.kill(child, signal.SIGKILL)
    _, wait_status = os.waitpid(child, 0)
    end_children(timeout_s=END_TIMEOUT_S)
    status = os.waitstatus_to_exitcode(wait_status)
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no other
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main()
