"""Roles as real processes: groups, restarts, the end of a parent, and what the commands make of them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from typer.testing import CliRunner

from understudy.cli.app import app
from understudy.cli.deploy import deploy
from understudy.cli.exits import Exit
from understudy.local.processes import RoleProcess, group_pids
from understudy.local.supervisor import Cluster
from understudy.settings.cluster import LogSettings
from understudy.wire.errors import Code, UnderstudyError

EXAMPLE = Path(__file__).parents[2] / "examples" / "quickstart"
DEADLINE_S = 30.0


def eventually(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {DEADLINE_S} s"
        time.sleep(0.01)


@pytest.fixture
def family(tmp_path: Path) -> Iterator[RoleProcess]:
    """A process with one child, which survives it."""
    argv = ["sh", "-c", "echo started; sleep 60 & exec sleep 60"]
    role = RoleProcess("agent", "n1", argv, tmp_path / "logs" / "agent-n1.log")
    yield role
    role.send_group(signal.SIGKILL)
    eventually(lambda: not role.pids() and not role.pid, "end of the group")


def test_a_group_dies_as_one(family: RoleProcess) -> None:
    family.start()
    eventually(lambda: len(family.pids()) == 2, "both processes")
    family.send_group(signal.SIGKILL)
    eventually(lambda: not family.pids(), "end of the group")
    assert family.exit_status == -signal.SIGKILL
    assert family.pid == 0


def test_starting_twice_starts_once(family: RoleProcess) -> None:
    family.start()
    pid = family.pid
    family.start()
    assert family.pid == pid
    assert family.starts == 1


def test_a_restarted_process_ends_with_those_who_survived_it(family: RoleProcess) -> None:
    family.start()
    eventually(lambda: len(family.pids()) == 2, "both processes")
    family.send(signal.SIGKILL)
    eventually(lambda: not family.pid, "death of the first")
    (survivor,) = family.pids()
    family.start()
    eventually(lambda: len(family.pids()) == 3, "the new process and its child beside the survivor")
    assert survivor in family.pids()
    assert os.getsid(family.pid) == family.pid
    family.send_group(signal.SIGKILL)
    eventually(lambda: not family.pids(), "end of all three")


def test_what_is_gone_is_forgotten(family: RoleProcess) -> None:
    family.start()
    first = family.pid
    family.send_group(signal.SIGKILL)
    family.start()
    assert family.pid != first
    assert os.getpgid(family.pid) == family.pid
    assert group_pids(first) == []


def test_restarts_are_at_once_then_slower(family: RoleProcess) -> None:
    family.start()
    delays = [family.restart_delay_s() for _ in range(12)]
    assert delays[0] == 0
    assert 0.08 <= delays[1] <= 0.12
    assert delays[2] > delays[1]
    assert max(delays) <= 6.0


def test_a_large_log_is_set_aside(family: RoleProcess) -> None:
    family.log_path.parent.mkdir()
    bytes_max = LogSettings().bytes_max
    family.log_path.write_bytes(b"x" * (bytes_max + 1))
    family.start()
    eventually(lambda: family.log_tail() == "started", "the new log")
    assert family.log_path.with_suffix(".log.1").stat().st_size >= bytes_max


def test_a_role_follows_its_parent(tmp_path: Path) -> None:
    """A supervisor that is killed takes its roles with it."""
    cluster = tmp_path / "CLUSTER.toml"
    cluster.write_text(
        'nodes = [{ name = "n1", memory_mb = 100 }]\ngateways = [{ name = "g1", http = "127.0.0.1:0" }]\n'
    )
    script = (
        "import signal, sys; from pathlib import Path; from understudy.local.supervisor import Cluster\n"
        "cluster = Cluster(Path(sys.argv[1])); cluster.start_gateway('g1')\n"
        "print(cluster.roles['gateway', 'g1'].pid, flush=True); signal.pause()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(cluster)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        log = tmp_path / "understudy-data" / "logs" / "gateway-g1.log"
        eventually(lambda: "gateway.started" in log.read_text(), "start of the gateway")
        parent.kill()
    eventually(lambda: not group_pids(pid), "end of the gateway")
    assert "gateway.stopped" in log.read_text()


def test_a_role_that_is_older_than_its_file_starts_all_the_same(tmp_path: Path) -> None:
    """It is restarted during an upgrade, by a supervisor that began with the former file."""
    text = 'nodes = [{ name = "n1", memory_mb = 100 }]\ngateways = [{ name = "g1", http = "127.0.0.1:0" }]\n'
    file = tmp_path / "CLUSTER.toml"
    file.write_text(text)
    cluster = Cluster(file)
    file.write_text(f"{text}[gateway.retry]\nattempts_maxx = 2\n")
    gateway = cluster.roles["gateway", "g1"]
    try:
        cluster.start_gateway("g1")
        eventually(lambda: "gateway.started" in gateway.log_path.read_text(), "start of the gateway")
    finally:
        gateway.send_group(signal.SIGKILL)
        eventually(lambda: not gateway.pids() and not gateway.pid, "end of the gateway")
    (warned,) = [
        line
        for line in map(json.loads, gateway.log_path.read_text().splitlines())
        if line["level"] == "warning"
    ]
    assert warned["event"] == "settings.ignored"
    what = "gateway.retry.attempts_maxx: unknown field; did you mean 'attempts_max'?"
    assert (warned["process"], warned["fields"]) == ("gateway:g1", [what])
    with pytest.raises(UnderstudyError, match="attempts_maxx: unknown field"):
        Cluster(file)


# The shipped example, under `understudy up`


class Done(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        return json.loads(self.err)


class Commands:
    """Runs commands in this process, with the addresses of one cluster in the environment."""

    def __init__(self, control: str, gateway: str) -> None:
        self.env = {"UNDERSTUDY_URL": control, "UNDERSTUDY_GATEWAY": gateway}

    def __call__(self, *args: str, stdin: str = "") -> Done:
        result = CliRunner(env=self.env).invoke(app, args, input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.stdout, result.stderr)


def copy_example(directory: Path) -> Path:
    """The example on ports that are free now; the path of its cluster file."""
    shutil.copytree(EXAMPLE, directory)
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = [sock.getsockname()[1] for sock in (one, two)]
    file = directory / "CLUSTER.toml"
    file.write_text(file.read_text().replace(":8080", f":{ports[0]}").replace(":8090", f":{ports[1]}"))
    return file


def groups_of(cluster: Path) -> list[int]:
    """The process that each role of a cluster began with; all but survivors' successors lead a group."""
    roles = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(cluster).encode() in words and b"--parent" in words:
            roles.append(int(entry.name))
    return [pid for pid in roles if psutil.Process(pid).ppid() not in roles]


@pytest.fixture(scope="module")
def cluster_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_example(tmp_path_factory.mktemp("up") / "quickstart")


@pytest.fixture(scope="module")
def up(cluster_file: Path) -> Iterator[dict[str, Any]]:
    """What `up --json` says once everything is ready. At the end, Ctrl-C has to stop all of it."""
    argv = [sys.executable, "-m", "understudy", "up", str(cluster_file), "--json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or lines[-1] != "}\n":
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr.read() if process.stderr else ""
        groups = groups_of(cluster_file)
        if len(groups) != 5:
            process.terminate()  # it would be waited for
        assert len(groups) == 5
        yield json.loads("".join(lines))
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _out, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, err
        assert time.monotonic() - began < 3.0
        assert [pid for group in groups for pid in group_pids(group)] == []


@pytest.fixture(scope="module")
def understudy(up: dict[str, Any]) -> Commands:
    return Commands(up["controllers"]["c1"], up["gateways"]["g1"])


def test_up_says_what_runs_where(up: dict[str, Any]) -> None:
    assert up["cluster"] == "quickstart"
    assert up["nodes"] == ["n1", "n2", "n3"]
    assert [(d["app"], d["state"]) for d in up["deployments"]] == [("primes", "ready")]
    assert (Path(up["logs"]) / "agent-n1.log").stat().st_size > 0


def test_status_of_a_healthy_cluster(understudy: Commands) -> None:
    status = understudy("status", "--check", "--json")
    assert status.status == Exit.OK
    assert status.err == ""
    (served,) = status.document["apps"]
    assert (served["name"], served["serving"], served["state"]) == ("primes", "exact", "ok")
    assert served["replicas"][0]["pid"] > 0


def test_a_pipe_gets_plain_lines(understudy: Commands) -> None:
    argv = [sys.executable, "-m", "understudy", "status"]
    piped = subprocess.run(argv, env=os.environ | understudy.env, capture_output=True, text=True, check=True)
    assert any(line.split()[:3] == ["primes", "exact", "ok"] for line in piped.stdout.splitlines())
    assert "\x1b" not in piped.stdout


@pytest.mark.parametrize("data", ["[[7],[9]]", "-", '{"inputs": [%s]}'])
def test_infer_takes_rows_and_requests(understudy: Commands, data: str) -> None:
    tensor = {"name": "number", "datatype": "INT64", "shape": [2, 1], "data": [7, 9]}
    data = data.replace("%s", json.dumps(tensor))
    answer = understudy("infer", "primes", "--data", data, "--json", stdin="[[7],[9]]")
    assert answer.status == Exit.OK, answer.err
    assert answer.document["response"]["outputs"][0]["data"] == [True, False]
    assert (answer.document["variant"], answer.document["degraded"]) == ("exact", False)


def test_infer_shows_the_answer_and_who_gave_it(understudy: Commands) -> None:
    assert (
        understudy("infer", "primes", "--data", "[7]").out == "prime  BOOL [1x1]  True\nby exact version 1\n"
    )


def test_who_names_the_controller_only_reaches_the_gateways(up: dict[str, Any]) -> None:
    elsewhere = Commands(up["controllers"]["c1"], "")
    assert elsewhere("infer", "primes", "--data", "[7]").out.startswith("prime  BOOL [1x1]  True\n")
    assert elsewhere("failures", "primes", "--json").status == Exit.OK
    assert elsewhere("failures", "primes").err == "none: no gateway remembers a failed request of primes\n"


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (("infer", "wine", "--data", "[1]"), Exit.NOT_FOUND, "unknown model 'wine'"),
        (("infer", "primes", "--data", "[[1],[1,2]]"), Exit.USAGE, "--data[1]"),
        (("infer", "primes", "--data", "[[0.5]]"), Exit.USAGE, "number"),
        (("remove", "wine"), Exit.NOT_FOUND, "the apps are primes"),
        (("remove", "prime"), Exit.NOT_FOUND, "did you mean 'primes'?"),
        (("drain", "n9"), Exit.NOT_FOUND, "the nodes are n1, n2, n3"),
        (("undrain", "east"), Exit.NOT_FOUND, "the nodes are n1, n2, n3"),
        (("quarantine", "clear", "primes", "exact"), Exit.NOT_FOUND, "exact"),
        (("deploy", "nowhere"), Exit.USAGE, "nowhere"),
        (
            ("status", "--url", "http://127.0.0.1:1", "--gateway", "http://127.0.0.1:1"),
            Exit.UNAVAILABLE,
            "no controller answers at http://127.0.0.1:1",
        ),
    ],
)
def test_mistakes_are_told_apart(
    understudy: Commands, args: tuple[str, ...], status: Exit, words: str
) -> None:
    told = understudy(*args)
    assert told.status == status, told.err
    assert told.err.startswith("error: ")
    assert words in told.err
    assert told.out == ""
    machine = understudy(*args, "--json")
    assert machine.status == status
    assert machine.out == ""
    assert set(machine.error) <= {"error", "code", "hint"}


def test_deploying_the_same_again_changes_nothing(understudy: Commands, cluster_file: Path) -> None:
    again = understudy("deploy", str(cluster_file.parent), "--json")
    assert again.status == Exit.OK, again.err
    (deployment,) = again.document["deployments"]
    assert (deployment["state"], deployment["version"]) == ("ready", 1)


def test_plan_and_events(understudy: Commands) -> None:
    plan = understudy("plan", "--json").document
    assert plan["placements"][0]["app"] == "primes"
    assert "exact" in understudy("plan").out
    events = understudy("events", "--app", "primes", "--json").document["events"]
    assert "app.deployed" in [event["kind"] for event in events]
    lines = understudy("events", "--limit", "3").out.splitlines()
    assert len(lines) == 3


def test_draining_moves_everything_off_a_node(understudy: Commands) -> None:
    def replicas(node: str) -> int:
        nodes = understudy("status", "--json").document["nodes"]
        return next(n["replicas"] for n in nodes if n["name"] == node)

    node = understudy("status", "--json").document["apps"][0]["replicas"][0]["node"]
    assert understudy("drain", node, "--json").document == {"node": node, "drained": True, "stays": []}
    eventually(lambda: replicas(node) == 0, f"an empty {node}")
    assert understudy("undrain", node).status == Exit.OK


def test_a_role_that_dies_is_started_again(understudy: Commands, cluster_file: Path) -> None:
    before = set(groups_of(cluster_file))
    victim = max(before)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: len(set(groups_of(cluster_file)) - {victim}) == 5, "the new process")
    eventually(lambda: understudy("status", "--check").status == Exit.OK, "a healthy cluster")


# The same processes in the hands of tests and demo


def test_a_cluster_in_code(tmp_path: Path) -> None:
    """Start, deploy, lose an agent and then the controller, stop: no process is left."""
    file = copy_example(tmp_path / "quickstart")

    async def play() -> list[int]:
        async with Cluster(file) as cluster:
            await cluster.wait_until(lambda views: True, DEADLINE_S, "the controller")
            (deployed,) = await asyncio.to_thread(deploy, cluster.control, file.parent)
            assert deployed.state == "ready", deployed.message
            await cluster.wait_ready(["primes"], DEADLINE_S)
            worker = (await cluster.workers("primes"))[0]
            assert worker.pid in cluster.roles["agent", worker.node].pids()

            agent = cluster.roles["agent", worker.node]
            cluster.kill_agent(worker.node)
            await asyncio.to_thread(eventually, lambda: not agent.pid, "death of the agent")
            assert worker.pid in agent.pids()
            cluster.start_node(worker.node)
            assert {agent.pid, worker.pid} <= set(agent.pids())

            cluster.kill_controller("c1")
            commands = Commands(cluster.control.urls[0], f"http://{cluster.config.gateways[0].http}")
            status = await asyncio.to_thread(commands, "status", "--json")
            assert status.status == Exit.OK, status.err
            assert status.document["source"] == "gateway"
            shown = await asyncio.to_thread(commands, "status")
            assert "No controller answers" in shown.out
            groups = [pid for role in cluster.roles.values() for pid in role.pids()]
        return [pid for pid in groups if group_pids(pid)]

    assert asyncio.run(play()) == []


def test_the_examples_page_ends_what_is_this_clusters_alone(tmp_path: Path) -> None:
    """Its commands as they are written; what has the same names in another cluster lives on."""
    file = copy_example(tmp_path / "quickstart")
    lines = (EXAMPLE / "README.md").read_text().splitlines()
    script = "\n".join(
        line[2:] for line in lines if line.startswith(("$ cluster=", "$ kill ", "$ pkill ", "$ pgrep "))
    )
    names = [f"understudy {role} --cluster /elsewhere/CLUSTER.toml" for role in ("agent n2", "controller c1")]
    sleeps = [[sys.executable, "-c", "import time; time.sleep(60)", *name.split()] for name in names]
    others = [subprocess.Popen(argv, process_group=0) for argv in sleeps]

    async def play() -> None:
        async with Cluster(file) as cluster:
            await cluster.wait_until(lambda views: True, DEADLINE_S, "the controller")
            mine = [cluster.roles["agent", "n2"], cluster.roles["controller", "c1"]]
            await asyncio.to_thread(
                subprocess.run, ["bash"], input=script, text=True, cwd=file.parent, check=False
            )
            await asyncio.to_thread(eventually, lambda: not mine[0].pids() and not mine[1].pid, "their end")
            assert cluster.roles["agent", "n1"].pid
            assert cluster.roles["gateway", "g1"].pid

    try:
        asyncio.run(play())
        assert [other.poll() for other in others] == [None, None]
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_a_frozen_node_can_be_thawed_and_is_stopped_even_if_not(tmp_path: Path) -> None:
    file = copy_example(tmp_path / "quickstart")

    def state(pid: int) -> str:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

    async def play() -> tuple[Cluster, float]:
        async with Cluster(file) as cluster:
            agent = cluster.roles["agent", "n1"].pid
            cluster.freeze_node("n1")
            await asyncio.to_thread(eventually, lambda: state(agent) == "T", "a stopped agent")
            cluster.thaw_node("n1")
            await asyncio.to_thread(eventually, lambda: state(agent) != "T", "a running agent")
            cluster.freeze_node("n1")
            began = time.monotonic()
        return cluster, time.monotonic() - began

    cluster, stopped_s = asyncio.run(play())
    assert cluster.pids() == []
    assert stopped_s < 3.5


def test_a_role_that_cannot_start_says_why(tmp_path: Path) -> None:
    file = copy_example(tmp_path / "quickstart")

    async def play(cluster: Cluster) -> None:
        address = cluster.config.gateways[0].http.rpartition(":")
        with socket.create_server((address[0], int(address[2]))):
            cluster.start_gateway("g1")
            try:
                await cluster.wait_until(lambda views: False, DEADLINE_S, "nothing")
            finally:
                await cluster.stop()

    with pytest.raises(UnderstudyError, match=r"gateway g1 can't start: .*can't listen on") as raised:
        asyncio.run(play(Cluster(file)))
    assert raised.value.code is Code.CONFIG
