"""How a zygote is started in an environment, and how an environment is made and tried, beside the agent.

Nothing that a trial starts outlives it: a process of ours, its keeper, is the parent, and becomes that of all
orphans. Where there are groups, what is in the trial's is killed as well, whatever became of the keeper.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from pathlib import Path

import msgspec

from understudy.adapters.sandbox.walls import Walls
from understudy.agent.entering import END_TIMEOUT_S, command_behind
from understudy.agent.limits import Groups
from understudy.agent.rooms import Rooms
from understudy.agent.variables import for_models
from understudy.wire.errors import Code, UnderstudyError

TRIAL_TIMEOUT_S = 120.0  # to import the runtime, from a disk that hasn't read it yet
INSTALL_TIMEOUT_S = 1200.0
KEEPER_TIMEOUT_S = END_TIMEOUT_S + 1.0
POOL = "trial"
SAID_BYTES_MAX = 16 * 1024


def zygote_command(argument: str, python: str = "", folder: str = "") -> list[str]:
    """`argument`: the number of the zygote's socket, or "try" to import what it needs and end."""
    module = "understudy.agent.beginning"
    return [python or sys.executable, "-P", "-m", module, argument, *([folder] if folder else [])]


def packages_of(python: str, folder: str) -> list[str]:
    """Directories that a zygote of this interpreter, or with this folder of packages, has to read."""
    real = os.path.realpath(python)
    return [folder] if folder else [str(Path(each).parent.parent) for each in dict.fromkeys([python, real])]


class Trials:
    """One at a time: they share a place to write to, and groups, and leave nothing in either."""

    def __init__(self, rooms: Rooms, groups: Groups, memory_mb: int) -> None:
        self._rooms = rooms
        self._groups = groups
        self._group = groups.of(POOL)
        self._memory_mb = memory_mb

    async def start_zygote(self, python: str, folder: str) -> None:
        """Raises LOAD_FAILED saying why none can be started there, UNAVAILABLE if the node can't tell."""
        walls = self._rooms.zygote_walls(POOL, packages_of(python, folder))
        status, said = await self._run(walls, zygote_command("try", python, folder), TRIAL_TIMEOUT_S)
        if status:
            raise UnderstudyError(Code.LOAD_FAILED, _why(said, status, python))

    async def install(self, wheels: Path, target: Path) -> None:
        """Raises as `install_wheels` does."""
        walls = self._rooms.zygote_walls(POOL, [str(wheels)])
        # A file of packages may be large, and their disk is watched.
        walls = msgspec.structs.replace(walls, writable=(*walls.writable, str(target)), scratch_mb=1 << 20)
        command = [sys.executable, "-P", "-m", "understudy.adapters.wheels", str(wheels), str(target)]
        status, said = await self._run(walls, command, INSTALL_TIMEOUT_S)
        if status:
            code, _, message = said.strip().rpartition("\n")[2].partition(" ")
            if code in (Code.UNAVAILABLE, Code.LOAD_FAILED):
                raise UnderstudyError(Code(code), message)
            raise UnderstudyError(Code.UNAVAILABLE, f"the wheels weren't installed: {_end(said, status)}")

    async def _run(self, walls: Walls, command: list[str], timeout_s: float) -> tuple[int, str]:
        """Exit status, and what it printed to standard error. All that it started has ended, too."""
        group = await asyncio.to_thread(self._groups.make, self._group, self._memory_mb)
        try:
            process = await asyncio.create_subprocess_exec(
                *command_behind(walls, group, command, keep=True),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=for_models(os.environ, ()),  # packages have code that runs when they are found
                start_new_session=True,
            )
        except OSError as error:
            raise UnderstudyError(Code.LOAD_FAILED, f"{command[0]} can't be run: {error.strerror}") from error
        try:
            async with asyncio.timeout(timeout_s):
                said = await _end_of(process.stderr)
                await process.wait()
        except TimeoutError:
            raise UnderstudyError(Code.UNAVAILABLE, f"it took more than {timeout_s:g} s") from None
        finally:
            await self._end(process)
        return process.returncode or 0, said.decode(errors="replace")

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.stdin is not None:
            process.stdin.close()
        await asyncio.to_thread(self._groups.end, self._group)
        try:
            async with asyncio.timeout(KEEPER_TIMEOUT_S):
                await process.wait()
        except TimeoutError:  # it was stopped, where there are no walls
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        await asyncio.to_thread(self._rooms.clear_zygote, POOL)


async def _end_of(stream: asyncio.StreamReader | None) -> bytes:
    """The last of what is printed, of however much."""
    said = b""
    while stream is not None and (part := await stream.read(SAID_BYTES_MAX)):
        said = (said + part)[-SAID_BYTES_MAX:]
    return said


def _why(said: str, status: int, python: str) -> str:
    if python and re.search(r"No module named '?understudy|[Uu]nknown option", said):
        return f"Understudy isn't installed for {python} (Python 3.11 or newer)"
    return f"Understudy can't be imported with these packages: {_end(said, status)}"


def _end(said: str, status: int) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    ended = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    return lines[-1] if lines else ended
