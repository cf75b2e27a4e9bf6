"""`python -m understudy.agent.entering WALLS COMMAND...`: a command behind Landlock, all that it starts too.

For what runs code that somebody else chose before there is a worker: packages that models bring.
"""

from __future__ import annotations

import os
import sys

import msgspec

from understudy.adapters.inherited import settle_inherited
from understudy.adapters.sandbox.restricted import restrict
from understudy.adapters.sandbox.walls import Tier, Walls


def command_behind(walls: Walls, command: list[str]) -> list[str]:
    """What is to be run for `command` to run behind `walls`."""
    if walls.tier is not Tier.LANDLOCK:
        return command
    return [
        sys.executable,
        "-P",
        "-m",
        "understudy.agent.entering",
        msgspec.json.encode(walls).decode(),
        *command,
    ]


def main() -> None:
    settle_inherited()
    walls = msgspec.json.decode(sys.argv[1], type=Walls)
    command = sys.argv[2:]
    try:
        restrict(walls)
        os.execv(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]} can't be run behind walls: {error}")


if __name__ == "__main__":
    main()
