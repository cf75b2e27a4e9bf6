"""What variants' workers run in besides Understudy's own installation: built here, offline, and tried.

An environment of wheels is a directory, `<root>/<digest>`, which appears under its name only when everything
is in it. Of a named interpreter only a mark is kept. Either is ready when a zygote has started in it once.
Building waits for its turn: one at a time, beside workers that serve. What nobody wants goes when there are
too many, or when the disk needs its room: the one whose last use is longest ago first.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from understudy.adapters.disks import is_place_trouble
from understudy.adapters.wheels import installed_bytes
from understudy.agent.staging import Staging
from understudy.agent.trial import install, try_zygote
from understudy.core.agent.events import EnvironmentChanged, Event
from understudy.settings.agent import AgentTuning
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.records import Environment

RETRY_S = 1.0  # what couldn't be had is tried again after this, then twice as long, …
RETRY_S_MAX = 300.0
PYTHON = "python"  # names the interpreter, in the mark of one
_PARTIAL = ".partial-"


class _Asked(NamedTuple):
    environment: Environment
    answer: asyncio.Future[UnderstudyError | None]  # None: it is ready


class Environments:
    """`tell` takes (kind, message) of an event for the log."""

    def __init__(
        self,
        root: Path,
        staging: Staging,
        tuning: AgentTuning,
        step: Callable[[Event], None],
        tell: Callable[[str, str], None],
    ) -> None:
        self._root = root
        self._staging = staging
        self._tuning = tuning
        self._step = step
        self._tell = tell
        self._wanted: dict[str, Environment] = {}
        self._is_told = False  # what is wanted; until then nothing goes
        self._asked: dict[str, _Asked] = {}  # by deployments, until they are answered
        self._in_use: frozenset[str] = frozenset()
        self._ready: set[str] = set()
        self._failed: dict[str, UnderstudyError] = {}
        self._retry: dict[str, tuple[float, float]] = {}  # key -> (loop time, the pause before it)
        self._aside: list[Path] = []  # to be removed
        self._changed = asyncio.Event()

    def find(self) -> list[str]:
        """Keys of those that survived from a former life; what was being built is cleared away."""
        self._root.mkdir(parents=True, exist_ok=True)
        for path in self._root.glob(f"{_PARTIAL}*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self._root.iterdir():
            if path.is_dir():
                mark = path / PYTHON
                self._ready.add(mark.read_text() if mark.is_file() else path.name)
        return sorted(self._ready)

    def command(self, key: str) -> tuple[str, str]:
        """(interpreter, directory of packages) that a zygote starts with; each empty for our own."""
        if key.startswith("/"):
            return key, ""
        return "", str(self._path(key)) if key else ""

    def want(self, environments: Collection[Environment]) -> None:
        self._is_told = True
        self._wanted = {environment.key: environment for environment in environments}
        for key in self._failed.keys() - self._wanted.keys():
            self._forget(key)
        self._changed.set()

    def use(self, keys: frozenset[str]) -> None:
        """What workers run in may not go."""
        for key in self._in_use ^ keys:
            self._used(key)
        self._in_use = keys

    def _used(self, key: str) -> None:
        """Now: noted on the disk, for the next agent."""
        now_ns = time.time_ns()
        with contextlib.suppress(OSError):
            os.utime(self._path(key), ns=(now_ns, now_ns))

    def _last_use_ns(self, key: str) -> int:
        try:
            return self._path(key).stat().st_mtime_ns
        except OSError:
            return 0

    def doubt(self, key: str) -> None:
        """Its zygote doesn't start any more: build it anew, if it is wanted."""
        if key in self._ready:
            self._ready.discard(key)
            self._aside.append(self._set_aside(key))
            again = "it no longer starts; it is being built again" if key in self._wanted else None
            self._step(EnvironmentChanged(key, again))
            self._changed.set()

    async def have(self, environment: Environment) -> None:
        """Return when it is ready. Raises why it can't be, or UNAVAILABLE while as many as may be wait."""
        if environment.key not in self._ready:
            problem = await asyncio.shield(self._ask(environment))  # others may wait for the same answer
            if problem is not None:
                raise problem
        self._used(environment.key)

    def _ask(self, environment: Environment) -> asyncio.Future[UnderstudyError | None]:
        key = environment.key
        if key not in self._asked:
            if len(self._asked) >= self._tuning.environments_max:
                raise UnderstudyError(
                    Code.UNAVAILABLE,
                    f"{len(self._asked)} environments wait to be built here already; try again later, "
                    "or raise agent.environments_max",
                )
            self._asked[key] = _Asked(environment, asyncio.get_running_loop().create_future())
        self._failed.pop(key, None)
        self._retry.pop(key, None)
        self._changed.set()
        return self._asked[key].answer

    def _answer(self, key: str, problem: UnderstudyError | None) -> None:
        asked = self._asked.pop(key, None)
        if asked is not None:
            asked.answer.set_result(problem)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._changed.clear()
            await self._remove_aside()
            environment = self._due()
            if environment is not None:
                await self._try(environment)
                continue
            due_s = [at_s for key, (at_s, _) in self._retry.items() if key in self._wanted]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(due_s, default=None)):
                    await self._changed.wait()

    def _due(self) -> Environment | None:
        """What is to be built now: what never failed first, then what has waited longest since."""
        wanted = self._wanted | {key: asked.environment for key, asked in self._asked.items()}
        due_s = {key: self._retry.get(key, (0.0, 0.0))[0] for key in wanted if key not in self._ready}
        first = min(due_s, key=lambda key: due_s[key], default=None)
        if first is None or due_s[first] > asyncio.get_running_loop().time():
            return None
        return wanted[first]

    async def _try(self, environment: Environment) -> None:
        key = environment.key
        try:
            if key not in self._failed:
                self._step(EnvironmentChanged(key, "it is being built"))
            await self._build(environment)
        except UnderstudyError as error:
            self._note_failure(environment, error)
        else:
            self._ready.add(key)
            self._failed.pop(key, None)
            self._retry.pop(key, None)
            self._answer(key, None)
            self._step(EnvironmentChanged(key, ""))

    def _note_failure(self, environment: Environment, error: UnderstudyError) -> None:
        key = environment.key
        if key not in self._wanted and key not in self._asked:
            self._step(EnvironmentChanged(key, None))
            return
        pause_s = min(2 * self._retry.get(key, (0.0, RETRY_S / 2))[1], RETRY_S_MAX)
        self._retry[key] = (asyncio.get_running_loop().time() + pause_s, pause_s)
        self._failed[key] = error
        self._answer(key, error)
        self._step(EnvironmentChanged(key, error.message))
        self._tell("environment.failed", f"{_named(environment)}: {error.message}")

    def _forget(self, key: str) -> None:
        """It failed, and nobody wants it any more."""
        del self._failed[key]
        self._retry.pop(key, None)
        self._step(EnvironmentChanged(key, None))

    async def _build(self, environment: Environment) -> None:
        """Raises UNAVAILABLE where the place is at fault, else LOAD_FAILED."""
        began_s = time.monotonic()
        await self._make_place()
        path = self._path(environment.key)
        partial = path.with_name(_PARTIAL + path.name)
        name = f"environment-{environment.key[:16]}"
        try:
            if environment.wheels is None:
                await try_zygote(environment.python, "")
                await asyncio.to_thread(_mark, partial, environment.python)
            else:
                folder = await self._staging.provide(environment.wheels, name)
                await self._staging.make_room(await asyncio.to_thread(installed_bytes, folder))
                await install(folder, partial)
                await try_zygote("", str(partial))
            if path.exists():  # it couldn't be set aside before
                self._aside.append(self._set_aside(environment.key))
            await asyncio.to_thread(partial.rename, path)
        except OSError as error:
            code = Code.UNAVAILABLE if is_place_trouble(error) else Code.LOAD_FAILED
            raise UnderstudyError(code, f"it can't be built: {error}") from error
        finally:
            self._staging.let_go(name)
            await asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True)
            await asyncio.to_thread(shutil.rmtree, self._staging.folder(name), ignore_errors=True)
            await self._remove_aside()
        took_s = time.monotonic() - began_s
        self._tell("environment.built", f"{_named(environment)} is ready after {took_s:.1f} s")

    async def drop_oldest(self) -> bool:
        """Make room on the disk. False if there is nothing that may go."""
        spare = [key for key in self._spare() if not key.startswith("/")]  # a mark takes none
        if spare:
            await self._drop(spare[0])
        return bool(spare)

    async def _make_place(self) -> None:
        """For one more than there are. Raises UNAVAILABLE."""
        while len(self._ready) >= self._tuning.environments_max:
            spare = self._spare()
            if not spare:
                raise UnderstudyError(
                    Code.UNAVAILABLE,
                    f"{len(self._ready)} environments are wanted here already; raise agent.environments_max",
                )
            await self._drop(spare[0])

    def _spare(self) -> list[str]:
        """What no variant needs, of this node's target or running; what was used longest ago comes first."""
        unwanted = self._ready - self._wanted.keys() - self._in_use if self._is_told else set()
        return sorted(unwanted, key=self._last_use_ns)

    async def _drop(self, key: str) -> None:
        self._ready.discard(key)
        self._step(EnvironmentChanged(key, None))
        await asyncio.to_thread(shutil.rmtree, self._set_aside(key), ignore_errors=True)

    def _set_aside(self, key: str) -> Path:
        """Out of the way of the next that is built, at once; removing thousands of files takes its time."""
        aside = self._root / f"{_PARTIAL}{time.monotonic_ns()}"
        with contextlib.suppress(OSError):
            self._path(key).rename(aside)
        return aside

    async def _remove_aside(self) -> None:
        while self._aside:
            await asyncio.to_thread(shutil.rmtree, self._aside.pop(), ignore_errors=True)

    def _path(self, key: str) -> Path:
        return self._root / (hashlib.sha256(key.encode()).hexdigest() if key.startswith("/") else key)


def _mark(folder: Path, python: str) -> None:
    folder.mkdir(parents=True)
    (folder / PYTHON).write_text(python)


def _named(environment: Environment) -> str:
    return environment.wheels.file_name if environment.wheels is not None else environment.python
