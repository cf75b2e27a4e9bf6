"""A hostile model in its worker: behind the walls of each tier, as root and as an ordinary user."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

sys.path.append(str(Path(__file__).parents[1] / "contract"))
from agents_zygote import AgentsZygote
from worker_process import DEADLINE_S, Client, connected, loading, request, tensor

from understudy.adapters.sandbox import kernel, limits, seccomp
from understudy.adapters.sandbox.walls import Tier, Walls
from understudy.agent.zygote import Exited
from understudy.wire.messages import Loaded
from understudy.wire.records import BatchingVerdict, TensorSpec

HOSTILE = Path(__file__).with_name("hostile.py")
SOMEBODY = 1234  # a user without any right
SECRET = "s3cret-of-the-cluster"
SCRATCH_MB = 32
TASKS_MAX = 200
SPECS: dict[str, Any] = {
    "inputs": (TensorSpec("attack", "BYTES", (1,)), TensorSpec("on", "BYTES", (1,))),
    "outputs": (TensorSpec("came", "BYTES", (1,)),),
    "verdict": BatchingVerdict(False, "test", "one at a time"),
}
ASK_TIER = """
import sys, msgspec
from understudy.adapters.sandbox import trial
from understudy.adapters.sandbox.walls import Walls
print(trial.best(msgspec.json.decode(sys.argv[1], type=Walls)).tier)
"""
# What agents and gateways do, and an instance for whoever else is of that user.
OTHERS = """
import ctypes, os, socket
from understudy.adapters import descriptors

descriptors.raise_limit()
if ctypes.CDLL(None).inotify_init1(0) < 0:
    raise OSError("no inotify")
one, other = socket.socketpair()
socket.send_fds(one, [b"."], [2])
print("done")
"""
_COLUMN = 0 if kernel.MACHINE == "x86_64" else 1
REFUSED = {
    name: numbers[_COLUMN] for name, numbers in seccomp._REFUSED.items() if numbers[_COLUMN] is not None
}


class Place(NamedTuple):
    root: bool
    forbidden: bool  # namespaces and mounts are refused, as in most containers

    @property
    def tier(self) -> Tier:
        return Tier.LANDLOCK if self.forbidden else Tier.NAMESPACES

    def prepare(self) -> None:
        """In a process that is to be such a place."""
        if not self.root and os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(SOMEBODY, SOMEBODY, SOMEBODY)
            os.setresuid(SOMEBODY, SOMEBODY, SOMEBODY)
        if self.forbidden:
            kernel.control(kernel.PR_SET_NO_NEW_PRIVS, 1, "PR_SET_NO_NEW_PRIVS")
            seccomp.refuse_calls(seccomp.LOCAL)

    def connected(self, path: Path) -> Client:
        """As who runs the cluster: in a user namespace of theirs, root is a stranger."""
        if self.root or os.geteuid() != 0:
            return connected(path)
        os.chown(path, SOMEBODY, SOMEBODY)
        os.seteuid(SOMEBODY)
        try:
            return connected(path)
        finally:
            os.seteuid(0)


PLACES = {
    f"{'root' if root else 'user'}-{'landlock' if forbidden else 'namespaces'}": Place(root, forbidden)
    for root in (True, False)
    for forbidden in (False, True)
}


class Scene(NamedTuple):
    """A worker with the hostile model, one to be attacked, and what else there is to attack."""

    place: Place
    folder: Path
    zygote: AgentsZygote
    worker: Client
    pid: int
    victim: int
    on: dict[str, str]

    def attack(self, attack: str, on: str = "") -> str:
        body = request(
            tensor("attack", "BYTES", [1], [attack]), tensor("on", "BYTES", [1], [on.format(**self.on)])
        )
        came: str = self.worker.answer(body)["outputs"][0]["data"][0]
        return came


def load(zygote: AgentsZygote, path: Path, client: Client) -> None:
    folder = zygote.rooms.folder(path.name)
    model = folder / "model.py"
    shutil.copyfile(HOSTILE, model)
    model.chmod(0o644)
    assert isinstance(client.call(loading("python", model, **SPECS), Loaded), Loaded)


@pytest.fixture(scope="module", params=PLACES)
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    place = PLACES[request.param]
    if place.root and os.geteuid() != 0:
        pytest.skip("only root can try what root's models can do")
    with contextlib.ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="us-")))
        folder.chmod(0o711)
        state = folder / "state"
        state.mkdir()
        (state / "operator.token").write_text(SECRET)
        (state / "operator.token").chmod(0o600)
        walls = Walls(place.tier, hidden=(str(folder),), scratch_mb=SCRATCH_MB, tasks_max=TASKS_MAX)
        zygote = opened.enter_context(
            AgentsZygote(state, walls, {"OF_THE_CLUSTER": SECRET[::-1]}, place.prepare)
        )
        paths = [folder / name for name in ("w1", "w2")]
        for name in ("w1", "w2", "trial"):
            zygote.rooms.walls(name)  # makes their directories
        meeting = opened.enter_context(socket.socket(socket.AF_UNIX))
        abstract = opened.enter_context(socket.socket(socket.AF_UNIX))
        meeting.bind(str(state / "agent.sock"))
        abstract.bind(f"\0understudy-{os.getpid()}")
        datagrams = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        datagrams.bind(str(state / "datagrams.sock"))
        shared = Path(f"/dev/shm/understudy-{os.getpid()}")
        shared.write_text(SECRET)
        opened.callback(shared.unlink)
        port = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        meeting.listen()
        abstract.listen()
        if os.geteuid() == 0 and not place.root:
            for path in (shared, state, *state.rglob("*")):
                os.chown(path, SOMEBODY, SOMEBODY)
        pid, victim = map(zygote.fork, paths)
        client, others = (opened.enter_context(place.connected(path)) for path in paths)
        load(zygote, paths[0], client)
        load(zygote, paths[1], others)
        on = {
            "folder": str(folder),
            "state": str(state),
            "pid": str(os.getpid()),
            "zygote": str(zygote.process.pid),
            "victim": str(victim),
            "port": str(port.getsockname()[1]),
            "abstract": f"understudy-{os.getpid()}",
            "prefix": sys.prefix,
            "home": str(Path.home()),
        }
        yield Scene(place, folder, zygote, client, pid, victim, on)


def without_landlock(place: Place) -> None:
    """As before Linux 5.13."""
    place.prepare()
    kernel.control(kernel.PR_SET_NO_NEW_PRIVS, 1, "PR_SET_NO_NEW_PRIVS")
    unknown = seccomp._step(seccomp._RETURN, seccomp._ERROR | errno.ENOSYS)
    steps = [seccomp._step(seccomp._LOAD, seccomp._NUMBER)]
    for number in range(kernel.LANDLOCK_CREATE_RULESET, kernel.LANDLOCK_RESTRICT_SELF + 1):
        steps += seccomp._if(seccomp._EQUAL, number, [unknown])
    seccomp.install(b"".join([*steps, seccomp._step(seccomp._RETURN, seccomp._ALLOW)]))


@pytest.mark.parametrize("prepare", [Place.prepare, without_landlock], ids=["landlock", "no-landlock"])
@pytest.mark.parametrize("root", [True, False], ids=["root", "user"])
def test_the_network_is_no_way_to_sockets_of_the_machine_that_are_not_its(
    root: bool, prepare: Callable[[Place], None]
) -> None:
    place = Place(root, forbidden=False)
    if root and os.geteuid() != 0:
        pytest.skip("only root can try what root's models can do")
    with contextlib.ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="us-")))
        state, path = folder / "state", folder / "w1"
        state.mkdir()
        walls = Walls(Tier.NAMESPACES, hidden=(str(folder),))
        folder.chmod(0o711)
        zygote = opened.enter_context(AgentsZygote(state, walls, prepare=partial(prepare, place)))
        zygote.rooms.walls(path.name, "+network")  # makes its directories
        for each in (state, *state.rglob("*")):
            if os.geteuid() == 0 and not root:
                os.chown(each, SOMEBODY, SOMEBODY)
        stream = opened.enter_context(socket.socket(socket.AF_UNIX))
        datagrams = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        stream.bind(f"\0understudy-{os.getpid()}-stream")
        datagrams.bind(f"\0understudy-{os.getpid()}-datagrams")
        stream.listen()
        port = opened.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        pid = zygote.fork(path, network=True)
        worker = opened.enter_context(place.connected(path))
        load(zygote, path, worker)
        scene = Scene(place, folder, zygote, worker, pid, 0, {})
        assert scene.attack("dial", str(port)) == "got None"
        assert scene.attack("work") == "got done"
        assert scene.attack("connect_abstract", f"understudy-{os.getpid()}-stream").startswith("failed Perm")
        came = scene.attack("send_by_pair", f"\0understudy-{os.getpid()}-datagrams")
        assert came.startswith("failed Perm"), came


MUST_FAIL = [
    ("read", "{state}/operator.token"),
    ("link", "{state}/operator.token"),
    ("watch", "{state}/replicas/own/w2"),
    ("through_root", "{state}/operator.token"),
    ("listed", "{state}/replicas/own/w2"),
    ("read", "{state}/replicas/own/w2/model.py"),
    ("read", "/etc/passwd"),
    ("read", "/etc/shadow"),
    ("read", "/proc/1/environ"),
    ("write", "OWN"),
    ("replace", "OWN"),
    ("write", "{state}/replicas/own/w1/more"),
    ("write", "{prefix}/harm"),
    ("write", "/usr/harm"),
    ("write", "/proc/sys/kernel/core_pattern"),
    ("write", "/proc/sysrq-trigger"),
    ("kill", "{pid}"),
    ("kill", "{zygote}"),
    ("kill", "{victim}"),
    ("memory_of", "{zygote}"),
    ("memory_of", "{victim}"),
    ("environment_of", "{zygote}"),
    ("environment_of", "{victim}"),
    ("descriptors_of", "{victim}"),
    ("trace", "{zygote}"),
    ("trace", "{victim}"),
    ("peek", "{victim}"),
    ("connect", "{state}/agent.sock"),
    ("connect", "{folder}/w2"),
    ("connect_abstract", "{abstract}"),
    ("dial", "{port}"),
    ("become", "1"),
    ("become", "1000"),
    ("limit_another", "{zygote}"),
    ("limit_another", "{victim}"),
    ("slow_another", "{victim}"),
    ("slow_group", ""),
    ("slow_user", ""),
    ("idle_disk_of_user", ""),
    ("signal_group", ""),
    ("signal_group_by_handle", ""),
    ("send_by_pair", "{state}/datagrams.sock"),
    ("file_in_shared_memory", "understudy-{pid}"),
    ("mount", ""),
    ("unmount", "/proc"),
    ("new_user", ""),
    ("clone_user", ""),
    ("raise_limit", ""),
    ("fill", "100"),
    *(
        ("family", str(int(each))) for each in (17, 31, 38, 40)
    ),  # packet, Bluetooth, kernel's crypto, VM sockets
    *(("call", str(number)) for number in REFUSED.values()),
]


@pytest.mark.parametrize(("attack", "on"), MUST_FAIL, ids=[f"{attack}-{on}" for attack, on in MUST_FAIL])
def test_it_fails(scene: Scene, attack: str, on: str) -> None:
    came = scene.attack(attack, on)
    assert came.startswith("failed "), came
    assert SECRET not in came
    assert not came.startswith(("failed NameError", "failed TypeError", "failed KeyError"))


def test_the_place_is_found_out_by_itself(scene: Scene) -> None:
    walls = scene.zygote.rooms.walls("trial")
    found = subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            ASK_TIER,
            json.dumps({name: getattr(walls, name) for name in walls.__struct_fields__}),
        ],
        preexec_fn=scene.place.prepare,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == scene.place.tier


def test_of_the_clusters_directories_it_sees_what_leads_to_its_own(scene: Scene) -> None:
    for path, own in (
        ("{folder}", "state"),
        ("{state}", "replicas"),
        ("{state}/replicas", "own"),
        ("{state}/replicas/own", "w1"),
    ):
        came = scene.attack("listed", path)
        assert came == f"got {[own]}" or came.startswith("failed PermissionError"), (path, came)


def test_honest_work_goes_on(scene: Scene) -> None:
    assert scene.attack("work") == "got done"


def test_pools_work_where_shared_memory_is_its_own(scene: Scene) -> None:
    came = scene.attack("pool")
    assert (
        came == "got [1, 2]" if scene.place.tier is Tier.NAMESPACES else came.startswith("failed Permission")
    )


def test_what_is_the_machines_keeps_its_modes_and_times(scene: Scene) -> None:
    for path in (scene.folder / "state" / "operator.token", scene.folder / "state" / "replicas"):
        before = path.stat()
        scene.attack("change_mode", str(path))
        assert (path.stat().st_mode, path.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


def test_nothing_of_it_is_shared_with_processes_that_are_not_its_own(scene: Scene) -> None:
    before = Path("/proc/sysvipc/shm").read_text()
    came = scene.attack("share_memory")
    assert came.startswith("failed") or scene.place.tier is Tier.NAMESPACES
    assert Path("/proc/sysvipc/shm").read_text() == before


def test_it_has_no_rights_and_gains_none(scene: Scene) -> None:
    came = scene.attack("rights").replace("'", '"').removeprefix("got ")
    rights = json.loads(came)
    assert (rights["CapEff"], rights["NoNewPrivs"], rights["Seccomp"]) == ("0" * 16, "1", "2")
    if scene.place.tier is Tier.NAMESPACES:
        assert rights["CapBnd"] == "0" * 16


def test_what_it_writes_is_bounded(scene: Scene) -> None:
    before = shutil.disk_usage(scene.folder).free
    assert scene.attack("fill", "8").startswith("failed OSError") or scene.place.tier is Tier.LANDLOCK
    written_mb = int(scene.attack("filled").removeprefix("got "))
    if scene.place.tier is Tier.NAMESPACES:
        assert written_mb <= SCRATCH_MB
    assert shutil.disk_usage(scene.folder).free > before - (SCRATCH_MB << 20)
    scene.attack("print_much", "100")
    assert scene.attack("") == "nothing"


def test_descriptors_are_bounded_and_the_worker_answers_afterwards(scene: Scene) -> None:
    assert int(scene.attack("open_all").removeprefix("got ")) < 4096
    assert scene.attack("") == "nothing"
    with scene.place.connected(scene.folder / "w1") as another:
        assert another.answer(request(tensor("attack", "BYTES", [1], [""]), tensor("on", "BYTES", [1], [""])))


def test_what_a_user_has_of_the_kernel_is_left_to_others_of_that_user(scene: Scene) -> None:
    taken = {
        attack: int(scene.attack(attack).removeprefix("got "))
        for attack in ("watch_all", "send_all", "signal_all")
    }
    try:
        assert taken["send_all"] > 1024, "else it takes nothing from anybody"
        assert taken["signal_all"] <= limits.SIGNALS_MAX
        others = subprocess.run(
            [sys.executable, "-P", "-c", OTHERS],
            preexec_fn=scene.place.prepare,
            capture_output=True,
            text=True,
        )
        assert others.stdout == "done\n", (taken, others.stderr)
    finally:
        assert scene.attack("release") == "got None"


def test_of_the_clusters_descriptors_it_has_its_own_only(scene: Scene) -> None:
    came = scene.attack("inherited")
    assert str(scene.folder) not in came, came
    assert " (deleted)" not in came, "the log of who runs the tests"


def test_processes_are_bounded_and_not_seen(scene: Scene) -> None:
    if scene.place.tier is not Tier.NAMESPACES:
        assert int(scene.attack("seen").removeprefix("got ")) > 4, "docs/security.md says that it hides none"
        return
    assert int(scene.attack("seen").removeprefix("got ")) <= 4
    assert scene.attack("sees", "pytest") == "got 0"
    assert scene.attack("bomb").startswith("failed BlockingIOError")
    victims = len(list(Path("/proc").glob("[0-9]*")))
    assert victims < 20_000
    wait_until(lambda: scene.attack("") == "nothing")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, "it never came true"
        time.sleep(0.005)


def test_nothing_outlives_the_worker_and_others_live_on(scene: Scene) -> None:
    """Last: the worker is gone then."""
    marker = f"stays-{os.getpid()}-{scene.pid}"
    assert scene.attack("stay", marker) == "got True"
    wait_until(partial(running, marker))
    scene.attack("kill_all")
    with contextlib.suppress(ProcessLookupError):
        os.kill(scene.pid, signal.SIGKILL)
    answer = scene.zygote.answer()
    assert isinstance(answer, Exited)
    assert answer.pid == scene.pid
    wait_until(lambda: not running(marker))
    assert Path(f"/proc/{scene.victim}").exists(), "it was another's"
    with scene.place.connected(scene.folder / "w2"):
        pass


def running(marker: str) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if marker.encode() in path.read_bytes():
                return True
    return False
