"""Environments of variants as a node builds them: real wheels, real interpreters, no network."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest
from small_disks import small_disk
from tests.wheels import write_wheel

import understudy
from understudy.adapters.artifacts import DirectoryStore, LocalArtifacts
from understudy.adapters.sandbox.trial import of_environments
from understudy.adapters.sandbox.walls import Tier, Walls
from understudy.agent.environments import Environments
from understudy.agent.kept_environments import KeptEnvironments
from understudy.agent.limits import Groups
from understudy.agent.rooms import Rooms
from understudy.agent.staging import Staging
from understudy.agent.trial import Trials
from understudy.cli import wheels
from understudy.core.agent.events import EnvironmentChanged, Event
from understudy.settings.agent import AgentTuning
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.records import ArtifactRef, Environment


class Node:
    """What an agent would have it driven by."""

    def __init__(
        self,
        folder: Path,
        environments_max: int = 16,
        staged_bytes_max: int = 10**9,
        disk: Path | None = None,
    ) -> None:
        self.folder = folder
        self.runner = asyncio.Runner()
        self.store = DirectoryStore(folder / "store")
        place = disk or folder
        self.staged = LocalArtifacts(place / "staged", self.store, staged_bytes_max)
        self.said: list[EnvironmentChanged] = []
        self.told: list[tuple[str, str]] = []
        self.root = place / "environments"
        self.kept = KeptEnvironments(self.root, self._step)
        rooms = Rooms(place, Walls(hidden=(str(folder),)), of_environments(Tier.NONE))
        staging = Staging(
            self.staged,
            rooms,
            lambda _: None,
            self._tell,
            spare=self.kept.drop_oldest,
        )
        tuning = AgentTuning(environments_max=environments_max)
        groups = Groups(f"understudy-test-{os.getpid()}", 100)
        self.environments = Environments(self.kept, staging, rooms, groups, tuning, self._step, self._tell)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.close()

    def _step(self, event: Event) -> None:
        assert isinstance(event, EnvironmentChanged)
        self.said.append(event)

    def _tell(self, kind: str, message: str) -> None:
        self.told.append((kind, message))

    def packed(self, name: str = "wheels") -> Environment:
        """The wheels of a directory of this name, uploaded."""
        return self.upload(wheels.resolve("test", None, self.folder / name))

    def upload(self, found: wheels.Wheels) -> Environment:
        found.content.seek(0)
        content = found.content.read()
        found.content.close()
        return self.stored(content)

    def stored(self, content: bytes) -> Environment:
        digest = hashlib.sha256(content).hexdigest()
        with self.store.upload(digest) as upload:
            upload.write(content)
            upload.commit()
        return Environment(ArtifactRef(digest, len(content), "requirements.txt.tar", "tar"))

    async def have(self, *asked: Environment) -> None:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(self.environments.run())
            try:
                for environment in asked:
                    async with asyncio.timeout(60):
                        await self.environments.have(environment)
            finally:
                running.cancel()

    def prepare(self, *asked: Environment) -> None:
        try:
            self.runner.run(self.have(*asked))
        except* UnderstudyError as group:
            raise group.exceptions[0] from None


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Node(tmp_path) as node:
        yield node


@contextmanager
def refused(node: Node, environment: Environment) -> Iterator[list[str]]:
    """What it says then; nothing of it is left."""
    with pytest.raises(UnderstudyError) as caught:
        node.prepare(environment)
    assert list(node.root.glob("*")) == []
    assert node.said[-1] == EnvironmentChanged(environment.key, caught.value.message)
    yield [caught.value.message, caught.value.code]


def run_in(node: Node, environment: Environment, code: str) -> str:
    """What `code` prints where a worker of that environment would run it."""
    python, folder = node.kept.command(environment.key)
    begin = (
        "from understudy.agent import beginning, zygote\n"
        f"zygote.main = lambda: exec({code!r})\n"
        "beginning.main()"
    )
    command = [python or sys.executable, "-P", "-c", begin, "unused", *([folder] if folder else [])]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_packages_of_a_model_come_before_those_of_the_installation(node: Node) -> None:
    write_wheel(node.folder / "wheels", "frobnicate", "2.1")
    write_wheel(node.folder / "wheels", "rich", "99.0")
    write_wheel(node.folder / "wheels", "understudy", "0.0.1")
    environment = node.packed()
    node.prepare(environment)
    code = "import frobnicate, rich, understudy; print(frobnicate.VERSION, rich.VERSION, understudy.__path__)"
    assert run_in(node, environment, code) == f"2.1 99.0 {understudy.__path__}"
    assert node.said[-1] == EnvironmentChanged(environment.key, "")


def test_what_is_built_survives_and_what_was_being_built_does_not(node: Node) -> None:
    write_wheel(node.folder / "wheels", "frobnicate")
    environment = node.packed()
    node.prepare(environment)
    (node.root / ".partial-half").mkdir()
    again = Node(node.folder)
    assert again.kept.find() == [environment.key]
    assert [path.name for path in node.root.iterdir()] == [environment.key]


def test_the_same_wheels_are_the_same_artifact_whenever_they_are_packed(node: Node) -> None:
    path = write_wheel(node.folder / "wheels", "frobnicate")
    first = node.packed()
    os.utime(path, (1, 1))
    assert node.packed() == first


def test_a_wheel_for_another_python_or_machine_is_named(node: Node) -> None:
    write_wheel(node.folder / "wheels", "frobnicate", tag="cp27-cp27m-win32")
    with refused(node, node.packed()) as (message, code):
        assert "frobnicate-1.0-cp27-cp27m-win32.whl is not for this node's Python" in message
        assert code == Code.LOAD_FAILED


def test_a_damaged_wheel_is_named(node: Node) -> None:
    write_wheel(node.folder / "wheels", "frobnicate", damaged=True)
    with refused(node, node.packed()) as (message, _):
        assert "frobnicate-1.0" in message
        assert "RECORD" in message


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x03\x04 cut off"])
def test_what_is_no_wheel_is_named(node: Node, content: bytes) -> None:
    write_wheel(node.folder / "wheels", "frobnicate").write_bytes(content)
    with refused(node, node.packed()) as (message, _):
        assert "frobnicate-1.0-py3-none-any.whl can't be installed" in message


def test_a_package_too_old_for_us_is_named_with_what_is_needed(node: Node) -> None:
    write_wheel(node.folder / "wheels", "msgspec", "0.2")
    with refused(node, node.packed()) as (message, _):
        assert "msgspec is 0.2 here, and Understudy needs 0.21.1 or newer" in message


def test_a_package_that_ends_the_interpreter_is_the_environments_failure(node: Node) -> None:
    write_wheel(node.folder / "wheels", "numpy", "99.0", files={"numpy.py": "import os\nos.abort()\n"})
    with refused(node, node.packed()) as (message, _):
        assert "Understudy can't be imported with these packages" in message


def test_an_interpreter_of_the_node_is_tried_once_and_remembered(node: Node) -> None:
    environment = Environment(python=sys.executable)
    node.prepare(environment)
    assert Node(node.folder).kept.find() == [sys.executable]
    assert run_in(node, environment, "import sys; print(sys.executable)") == sys.executable


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("#!/bin/sh\necho \"No module named 'understudy'\" >&2; exit 1", "isn't installed for"),
        ("#!/bin/sh\nkill -9 $$", "killed by signal 9"),
        (None, "can't be run"),
    ],
)  # fmt: skip
def test_an_interpreter_that_will_not_do_is_told_why(node: Node, body: str | None, said: str) -> None:
    python = node.folder / "python"
    if body is not None:
        python.write_text(body)
        python.chmod(0o755)
    with refused(node, Environment(python=str(python))) as (message, _):
        assert said in message


def test_a_full_disk_is_the_places_trouble_and_the_build_goes_on_when_it_ends(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(node.folder / "wheels", "frobnicate")
    environment = node.packed()
    install = Trials.install

    async def full(trials: Trials, wheels: Path, target: Path) -> None:
        await install(trials, wheels, target)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Trials, "install", full)
    with refused(node, environment) as (message, code):
        assert "No space left" in message
        assert code == Code.UNAVAILABLE
    monkeypatch.setattr(Trials, "install", install)
    node.prepare(environment)
    assert node.said[-1] == EnvironmentChanged(environment.key, "")


def test_a_copy_that_could_not_be_unpacked_goes_when_its_room_is_needed(tmp_path: Path) -> None:
    node = Node(tmp_path, staged_bytes_max=100)
    broken = [node.stored(bytes([number]) * 60) for number in range(2)]
    for environment in broken:
        with refused(node, environment) as (message, code):
            assert "the artifact can't be unpacked" in message
            assert code == Code.LOAD_FAILED
    node.runner.close()
    assert node.staged.digests() == [broken[1].key]


def test_environments_that_nobody_wants_go_when_there_are_too_many(tmp_path: Path) -> None:
    node = Node(tmp_path, environments_max=2)
    found = []
    for name in ("one", "two", "three", "four"):
        write_wheel(tmp_path / name, name)
        found.append(node.packed(name))
    node.environments.want([found[0]])
    node.prepare(*found[:2])
    node.prepare(found[2])
    node.runner.close()
    left = {path.name for path in node.root.iterdir()}
    assert left == {found[0].key, found[2].key}
    assert EnvironmentChanged(found[1].key, None) in node.said


async def asked_at_once(
    node: Node, *asked: Environment, timeout_s: float = 10.0
) -> list[BaseException | None]:
    """What each is answered with. Raises TimeoutError if one isn't."""
    running = asyncio.create_task(node.environments.run())
    try:
        async with asyncio.timeout(timeout_s):
            having = (node.environments.have(environment) for environment in asked)
            return await asyncio.gather(*having, return_exceptions=True)
    finally:
        running.cancel()


def test_whoever_asks_is_answered_also_when_more_are_asked_for_than_may_wait(tmp_path: Path) -> None:
    bad = [Environment(python=str(tmp_path / name)) for name in "abcd"]
    with Node(tmp_path, environments_max=2) as node:
        node.environments.want([])
        answers = [str(answer) for answer in node.runner.run(asked_at_once(node, *bad))]
        assert all("can't be run" in answer for answer in answers[:2])
        assert all("2 environments wait to be built here already" in answer for answer in answers[2:])
        good = [_interpreter(tmp_path, name) for name in "efgh"]
        for pair in (good[:2], good[2:]):  # what is ready takes no turn of those who wait
            assert node.runner.run(asked_at_once(node, *pair, *pair)) == [None] * 4


def _interpreter(folder: Path, name: str) -> Environment:
    """Ours by another name."""
    path = folder / name
    path.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return Environment(python=str(path))


class Forgetful(Node):
    """Wants nothing any more as soon as something fails."""

    def _step(self, event: Event) -> None:
        super()._step(event)
        if event.problem and "can't be run" in event.problem:  # type: ignore[union-attr]
            self.environments.want([])


def test_whoever_asked_is_told_of_a_failure_that_nobody_else_wants_to_know_of(tmp_path: Path) -> None:
    with Forgetful(tmp_path) as node:
        bad = Environment(python=str(tmp_path / "nothing"))
        (answer,) = node.runner.run(asked_at_once(node, bad))
        assert "can't be run" in str(answer)
        assert node.said[-1] == EnvironmentChanged(bad.key, None)


async def doubted(node: Node, environment: Environment) -> list[str]:
    """It is doubted while it is wanted; where what was removed in the thread of the loop was."""
    removed_here: list[str] = []
    remove, here = shutil.rmtree, threading.get_ident()

    def rmtree(path: Path, **how: bool) -> None:
        if threading.get_ident() == here:
            removed_here.append(str(path))
        remove(path, **how)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shutil, "rmtree", rmtree)
        node.environments.doubt(environment.key)
        assert not (node.root / environment.key).exists()
        await asked_at_once(node, environment, timeout_s=60)
    return removed_here


def test_a_doubted_environment_is_built_again_and_its_files_are_removed_in_a_thread(node: Node) -> None:
    write_wheel(node.folder / "wheels", "frobnicate")
    environment = node.packed()
    node.environments.want([environment])
    node.prepare(environment)
    broken = node.root / environment.key / "broken"
    broken.touch()
    assert node.runner.run(doubted(node, environment)) == []
    assert [path.name for path in node.root.iterdir()] == [environment.key]
    assert not broken.exists()
    again = ["it no longer starts; it is being built again", "it is being built", ""]
    assert [each.problem for each in node.said][-3:] == again


def test_what_could_not_be_removed_is_in_no_builds_way(node: Node) -> None:
    write_wheel(node.folder / "wheels", "frobnicate")
    environment = node.packed()
    left = node.root / environment.key / "left"
    left.parent.mkdir(parents=True)
    left.touch()
    node.prepare(environment)
    assert [path.name for path in node.root.iterdir()] == [environment.key]
    assert not left.exists()


def test_a_doubted_environment_that_nobody_wants_is_gone(node: Node) -> None:
    write_wheel(node.folder / "wheels", "frobnicate")
    environment = node.packed()
    node.prepare(environment)
    node.environments.want([])
    node.environments.doubt(environment.key)
    assert node.said[-1] == EnvironmentChanged(environment.key, None)


async def unwanted_during_the_first(node: Node, *wanted: Environment) -> list[str]:
    """What is tried where all of them are wanted until the first is being tried; each fails."""
    tried = []

    async def never_starts(_: Trials, python: str, __: str) -> None:
        tried.append(python)
        node.environments.want([])
        raise UnderstudyError(Code.LOAD_FAILED, "it never starts")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trials, "start_zygote", never_starts)
        node.environments.want(wanted)
        running = asyncio.create_task(node.environments.run())
        for _ in range(100):  # more than building all of them takes
            await asyncio.sleep(0.001)
        running.cancel()
    return tried


def test_what_is_no_longer_wanted_is_neither_built_nor_reported(node: Node) -> None:
    wanted = [Environment(python=str(node.folder / name)) for name in "abc"]
    assert node.runner.run(unwanted_during_the_first(node, *wanted)) == [wanted[0].python]
    key = wanted[0].key
    assert node.said == [EnvironmentChanged(key, "it is being built"), EnvironmentChanged(key, None)]
    assert node.told == []


def of_two_mib(node: Node, name: str) -> Environment:
    write_wheel(node.folder / name, name, files={f"{name}.py": "", f"{name}.txt": "x" * 2**21})
    return node.packed(name)


def test_environments_that_nobody_wants_go_when_the_disk_is_short_the_longest_unused_first(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "disk", 14) as disk, Node(tmp_path, disk=disk) as node:
        wanted, running, used_again, unused = (of_two_mib(node, name) for name in "abcd")
        node.prepare(wanted, running, used_again, unused, used_again)
        node.environments.want([wanted])
        node.kept.use(frozenset([running.key]))
        gone = []
        for name in "efg":
            before = {path.name for path in node.root.iterdir()}
            new = of_two_mib(node, name)
            node.prepare(new)
            gone += before - {path.name for path in node.root.iterdir()}
            if name == "e":
                newer = new
        assert gone == [unused.key, used_again.key, newer.key]
        assert [e.key for e in node.said if e.problem is None] == gone
        assert {wanted.key, running.key} < {path.name for path in node.root.iterdir()}


def test_a_disk_full_of_environments_that_are_wanted_loses_none(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 9) as disk, Node(tmp_path, disk=disk) as node:
        found = [of_two_mib(node, name) for name in "abc"]
        node.environments.want(found[:2])
        node.prepare(*found[:2])
        with pytest.raises(UnderstudyError, match="its packages take 2 MB installed; the disk of") as caught:
            node.prepare(found[2])
        assert caught.value.code is Code.UNAVAILABLE
        assert {path.name for path in node.root.iterdir()} == {found[0].key, found[1].key}


def test_wheels_that_become_more_than_the_disk_has_do_not_fill_it(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 14) as disk, Node(tmp_path, disk=disk) as node:
        write_wheel(node.folder / "a", "a", files={"a.py": "", "a.txt": "x" * 2**26}, compressed=True)
        with refused(node, node.packed("a")) as (message, code):
            assert message.startswith("its packages take 64 MB installed")
            assert code is Code.UNAVAILABLE


def test_an_agent_that_was_told_nothing_yet_lets_no_environment_go(node: Node) -> None:
    write_wheel(node.folder / "wheels", "frobnicate")
    node.prepare(node.packed())
    again = Node(node.folder)
    again.kept.find()
    assert not node.runner.run(again.kept.drop_oldest())
    again.environments.want([])
    assert node.runner.run(again.kept.drop_oldest())
    assert list(node.root.iterdir()) == []
