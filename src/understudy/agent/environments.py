"""What variants' workers run in besides Understudy's own installation: built here, offline, and tried.

An environment of wheels, or a named interpreter, is ready when a zygote has started in it once. Building
waits for its turn: one at a time, beside workers that serve. What nobody wants goes when there are too many.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from understudy.adapters.disks import MIB, DiskRoom, is_place_trouble
from understudy.adapters.own_files import remove_tree
from understudy.adapters.wheels import installed_bytes
from understudy.agent.kept_environments import PYTHON, KeptEnvironments
from understudy.agent.limits import Groups
from understudy.agent.rooms import Rooms
from understudy.agent.staging import Staging
from understudy.agent.trial import Trials
from understudy.core.agent.events import EnvironmentChanged, Event
from understudy.settings.agent import AgentTuning
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.records import Environment

RETRY_S = 1.0  # what couldn't be had is tried again after this, then twice as long, …
RETRY_S_MAX = 300.0


class _Asked(NamedTuple):
    environment: Environment
    answer: asyncio.Future[UnderstudyError | None]  # None: it is ready


class Environments:
    """Sees to it that what is wanted or asked for is among the `kept`.

    `tell` takes (kind, message) of an event for the log.
    """

    def __init__(
        self,
        kept: KeptEnvironments,
        staging: Staging,
        rooms: Rooms,
        groups: Groups,
        tuning: AgentTuning,
        step: Callable[[Event], None],
        tell: Callable[[str, str], None],
    ) -> None:
        self.kept = kept
        self._staging = staging
        self._rooms = rooms
        self._trials = Trials(rooms, groups, tuning.sandbox.packages_memory_mb)
        self._tuning = tuning
        self._step = step
        self._tell = tell
        self._wanted: dict[str, Environment] = {}
        self._asked: dict[str, _Asked] = {}  # by deployments, until they are answered
        self._failed: dict[str, UnderstudyError] = {}
        self._retry: dict[str, tuple[float, float]] = {}  # key -> (loop time, the pause before it)
        self._changed = asyncio.Event()

    def want(self, environments: Collection[Environment]) -> None:
        self._wanted = {environment.key: environment for environment in environments}
        self.kept.want(self._wanted)
        for key in self._failed.keys() - self._wanted.keys():
            self._forget(key)
        self._changed.set()

    def doubt(self, key: str) -> None:
        """Its zygote doesn't start any more: build it anew, if it is wanted."""
        if key in self.kept:
            self.kept.set_aside(key)
            again = "it no longer starts; it is being built again" if key in self._wanted else None
            self._step(EnvironmentChanged(key, again))
            self._changed.set()

    async def have(self, environment: Environment) -> None:
        """Return when it is ready. Raises why it can't be, or UNAVAILABLE while as many as may be wait."""
        if environment.key not in self.kept:
            problem = await asyncio.shield(self._ask(environment))  # others may wait for the same answer
            if problem is not None:
                raise problem
        self.kept.used(environment.key)

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
            await self.kept.remove_aside()
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
        due_s = {key: self._retry.get(key, (0.0, 0.0))[0] for key in wanted if key not in self.kept}
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
            self.kept.add(key)
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
        partial = self.kept.partial(environment.key)
        name = f"environment-{environment.key[:16]}"
        try:
            if environment.wheels is None:
                await self._trials.start_zygote(environment.python, "")
                await asyncio.to_thread(_mark, partial, environment.python)
            else:
                folder = await self._staging.provide(environment.wheels, name)
                needed_bytes = await asyncio.to_thread(installed_bytes, folder)
                await self._staging.make_room(needed_bytes)
                await asyncio.to_thread(_check_room, partial, needed_bytes)
                await asyncio.to_thread(partial.mkdir, parents=True, exist_ok=True)
                await self._trials.install(folder, partial)
                await asyncio.to_thread(self._rooms.open_up, partial)
                await self._trials.start_zygote("", str(partial))
            await self.kept.place(environment.key)
        except OSError as error:
            code = Code.UNAVAILABLE if is_place_trouble(error) else Code.LOAD_FAILED
            raise UnderstudyError(code, f"it can't be built: {error}") from error
        finally:
            self._staging.let_go(name)
            await asyncio.to_thread(remove_tree, partial)
            await asyncio.to_thread(self._staging.clear, name)
            await self.kept.remove_aside()
        took_s = time.monotonic() - began_s
        self._tell("environment.built", f"{_named(environment)} is ready after {took_s:.1f} s")

    async def _make_place(self) -> None:
        """For one more than there are. Raises UNAVAILABLE."""
        while len(self.kept) >= self._tuning.environments_max:
            if not await self.kept.drop_oldest(marks=True):
                raise UnderstudyError(
                    Code.UNAVAILABLE,
                    f"{len(self.kept)} environments are wanted here already; raise agent.environments_max",
                )


def _mark(folder: Path, python: str) -> None:
    folder.mkdir(parents=True)
    (folder / PYTHON).write_text(python)


def _check_room(place: Path, needed_bytes: int) -> None:
    """Before the disk is full for everybody: wheels are compressed, and may become a thousand times more."""
    room = DiskRoom.of(place)
    if needed_bytes > room.free_bytes:
        needed_mb = needed_bytes / MIB
        raise UnderstudyError(Code.UNAVAILABLE, f"its packages take {needed_mb:,.0f} MB installed; {room}")


def _named(environment: Environment) -> str:
    return environment.wheels.file_name if environment.wheels is not None else environment.python
