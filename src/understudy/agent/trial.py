"""How a zygote is started in an environment, and how an environment is made and tried, beside the agent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from pathlib import Path

from understudy.adapters.sandbox.walls import Walls
from understudy.agent.entering import command_behind
from understudy.agent.variables import for_models
from understudy.wire.errors import Code, UnderstudyError

TRIAL_TIMEOUT_S = 120.0  # to import the runtime, from a disk that hasn't read it yet
INSTALL_TIMEOUT_S = 1200.0
SAID_BYTES_MAX = 16 * 1024


def zygote_command(argument: str, python: str = "", folder: str = "") -> list[str]:
    """`argument`: the number of the zygote's socket, or "try" to import what it needs and end."""
    module = "understudy.agent.beginning"
    return [python or sys.executable, "-P", "-m", module, argument, *([folder] if folder else [])]


def packages_of(python: str, folder: str) -> list[str]:
    """Directories that a zygote of this interpreter, or with this folder of packages, has to read."""
    real = os.path.realpath(python)
    return [folder] if folder else [str(Path(each).parent.parent) for each in dict.fromkeys([python, real])]


async def try_zygote(python: str, folder: str, walls: Walls) -> None:
    """Raises LOAD_FAILED saying why no zygote can be started there, UNAVAILABLE if the node can't tell."""
    status, said = await _run(command_behind(walls, zygote_command("try", python, folder)), TRIAL_TIMEOUT_S)
    if status:
        raise UnderstudyError(Code.LOAD_FAILED, _why(said, status, python))


async def install(wheels: Path, target: Path, walls: Walls) -> None:
    """In a process of its own, which ends with this one. Raises as `install_wheels` does."""
    module = "understudy.adapters.wheels"
    command = [sys.executable, "-P", "-m", module, str(os.getpid()), str(wheels), str(target)]
    status, said = await _run(command_behind(walls, command), INSTALL_TIMEOUT_S)
    if status:
        code, _, message = said.strip().rpartition("\n")[2].partition(" ")
        if code in (Code.UNAVAILABLE, Code.LOAD_FAILED):
            raise UnderstudyError(Code(code), message)
        raise UnderstudyError(Code.UNAVAILABLE, f"the wheels weren't installed: {_end(said, status)}")


async def _run(command: list[str], timeout_s: float) -> tuple[int, str]:
    """Exit status, and what it printed to standard error."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
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
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    return process.returncode or 0, said.decode(errors="replace")


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
