"""What packages of a model start before there is a worker ends with their trial, or with their zygote."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from understudy.adapters.sandbox.trial import of_environments
from understudy.adapters.sandbox.walls import Tier, Walls
from understudy.agent.entering import command_behind
from understudy.agent.limits import CONTROLLERS, Groups
from understudy.agent.rooms import Rooms
from understudy.agent.spawner import Spawner
from understudy.agent.trial import Trials, packages_of, zygote_command
from understudy.settings.agent import AgentTuning

DEADLINE_S = 20.0
MEMORY_MB = 512
# Runs when its folder is added to a path. It tries to kill the keeper; what it leaves holds standard error.
START = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        os.execv(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(600)", {marker!r}])
    os._exit(0)
os.wait()
try:
    os.kill(os.getppid(), signal.SIGKILL)
except PermissionError:
    pass
open(os.environ["TMPDIR"] + "/left", "w").close()
{then}
"""


class Place(NamedTuple):
    rooms: Rooms
    groups: Groups
    folder: Path  # of packages
    marker: str

    def bring(self, then: str = "") -> None:
        self.folder.mkdir()
        (self.folder / "stray.pth").write_text("import stray_start\n")
        (self.folder / "stray_start.py").write_text(START.format(marker=self.marker, then=then))

    def runs(self) -> bool:
        return any(self.marker.encode() in line for line in command_lines())


def command_lines() -> Iterator[bytes]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes()


@contextlib.contextmanager
def place_with(folder: Path, controllers: Collection[str]) -> Iterator[Place]:
    tier = of_environments(Tier.NONE)
    assert tier is Tier.LANDLOCK, "this kernel has no Landlock"
    groups = Groups(f"understudy-test-{os.getpid()}", 100, controllers=controllers)
    place = Place(Rooms(folder, Walls(tier), tier), groups, folder / "packages", f"stray-{folder}")
    try:
        yield place
    finally:
        assert groups.sweep()
        assert not place.runs()


@pytest.fixture(params=["groups", "no groups"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with place_with(tmp_path, tuple(CONTROLLERS) if request.param == "groups" else ()) as made:
        if request.param == "groups" and not made.groups.of("any"):
            pytest.skip("no cgroup may be made here")
        yield made


async def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, "it never came true"
        await asyncio.sleep(0.01)


def test_none_outlives_a_trial(place: Place) -> None:
    place.bring()
    trials = Trials(place.rooms, place.groups, MEMORY_MB)

    async def test() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await trials.start_zygote("", str(place.folder))

    asyncio.run(test())
    assert not place.runs()
    assert not list(place.folder.parent.glob("scratch/*/left"))


def test_none_outlives_a_trial_that_is_given_up(place: Place) -> None:
    place.bring("time.sleep(600)")
    trials = Trials(place.rooms, place.groups, MEMORY_MB)

    async def test() -> None:
        trial = asyncio.create_task(trials.start_zygote("", str(place.folder)))
        await until(lambda: bool(list(place.folder.parent.glob("scratch/*/left"))))
        assert place.runs()
        trial.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trial

    asyncio.run(test())
    assert not place.runs()


def test_none_outlives_a_zygote_where_there_are_groups(tmp_path: Path) -> None:
    with place_with(tmp_path, tuple(CONTROLLERS)) as place:
        if not place.groups.of("any"):
            pytest.skip("no cgroup may be made here")
        place.bring()
        group = place.groups.of("zygote")
        walls = place.rooms.zygote_walls("pool", packages_of("", str(place.folder)))

        def command(socket: str) -> list[str]:
            made = place.groups.make(group, MEMORY_MB)
            return command_behind(walls, made, zygote_command(socket, "", str(place.folder)))

        async def test() -> None:
            spawner = Spawner(
                command,
                AgentTuning(),
                *[lambda *_: None] * 3,
                trusted=False,
                clear=partial(place.groups.end, group),
            )
            spawner.start()
            await until(place.runs)
            assert place.groups.limit_mb(group) in (MEMORY_MB, None)
            await spawner.close()

        asyncio.run(test())
        assert not place.runs()
        shutil.rmtree(place.folder)
