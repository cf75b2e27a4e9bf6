"""How processes start: what the system refuses is a sentence, and where they are started means nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from understudy.adapters.ports import free_ports

ROLES = ("controller c1", "gateway g1", "agent n1")
UNPRIVILEGED = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
PATIENCE_S = 20


def write_cluster(folder: Path, data_dir: str = "data") -> Path:
    http, control = free_ports(2)
    path = folder / "CLUSTER.toml"
    path.write_text(
        f'name = "start"\ndata_dir = "{data_dir}"\n[[nodes]]\nname = "n1"\nmemory_mb = 100\n'
        f'[[gateways]]\nname = "g1"\nhttp = "127.0.0.1:{http}"\n'
        f'[[controllers]]\nname = "c1"\nhttp = "127.0.0.1:{control}"\n'
    )
    return path


def no_right(folder: Path) -> str:
    (folder / "closed").mkdir(mode=0o500)
    return "closed/data"


def no_directory(folder: Path) -> str:
    (folder / "file").touch()
    return "file/data"


def until(holds: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.05)


@pytest.mark.parametrize("refusal", [no_right, no_directory])
@pytest.mark.parametrize("command", ["up", "controller c1", "agent n1"])
def test_a_place_that_cannot_be_had_is_told_in_a_sentence(
    tmp_path: Path, command: str, refusal: Callable[[Path], str]
):
    path = write_cluster(tmp_path, refusal(tmp_path))
    words = ["up", str(path)] if command == "up" else [*command.split(), "--cluster", str(path)]
    done = subprocess.run(
        [*UNPRIVILEGED, sys.executable, "-m", "understudy", *words],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert str(tmp_path) in done.stderr
    assert {no_right: "Permission denied", no_directory: "Not a directory"}[refusal] in done.stderr


@pytest.mark.parametrize("table", [b"", b"damaged" * 20])
def test_a_gateway_serves_from_a_disk_that_takes_nothing(tmp_path: Path, table: bytes):
    path = write_cluster(tmp_path)
    kept = tmp_path / "data" / "gateway" / "g1"
    kept.mkdir(parents=True)
    (kept / "routes.bin").write_bytes(table)
    for folder in (kept, kept.parent, kept.parent.parent):
        folder.chmod(0o500)
    (tmp_path / "data").chmod(0o500)
    log = tmp_path / "log"
    command = [*UNPRIVILEGED, sys.executable, "-m", "understudy", "gateway", "g1", "--cluster", str(path)]
    with log.open("wb") as stderr, subprocess.Popen(command, stderr=stderr) as process:
        try:
            until(lambda: "gateway.started" in log.read_text() or process.poll() is not None, "it starts")
            time.sleep(0.5)
            assert process.poll() is None, log.read_text()
            assert log.read_text().count("gateway.started") == 1
            assert "gateway.process_died" not in log.read_text()
        finally:
            process.terminate()


@pytest.mark.parametrize("module", ["statistics", "ssl", "numpy", "typer"])
def test_a_module_where_it_is_started_is_nothing_to_a_cluster(tmp_path: Path, module: str):
    path = write_cluster(tmp_path)
    (tmp_path / f"{module}.py").write_text("raise RuntimeError('shadowed')\n")
    if module != "statistics":  # the command itself
        done = subprocess.run(
            [sys.executable, "-m", "understudy", "--help"],
            cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return
    log = tmp_path / "log"
    command = [sys.executable, "-m", "understudy", "up", str(path)]
    with log.open("wb") as out, subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=out) as process:
        try:
            until(lambda: "is up" in log.read_text() or process.poll() is not None, "it is up")
            logs = "".join(each.read_text() for each in (tmp_path / "data" / "logs").iterdir())
            assert "shadowed" not in logs
            assert "gateway.process_died" not in logs
            assert "ended with status" not in log.read_text()
        finally:
            process.terminate()


def endure(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    """`up` is up, what is killed is there again, whoever is its parent, and it ends when it is told to."""
    logs = tmp_path / "data" / "logs"

    def named(words: str) -> set[psutil.Process]:
        children = psutil.Process(process.pid).children(recursive=True)
        return {each for each in children if words in " ".join(command(each))}

    try:
        for words in ("worker (blank)", "(serving)", "agent n1", "controller c1"):
            until(lambda words=words: process.poll() is not None or named(words), f"{words} is there")
            assert process.poll() is None, f"{process.returncode}: {(tmp_path / 'said').read_text()}"
            killed = next(iter(named(words)))
            killed.kill()
            until(
                lambda words=words, killed=killed: process.poll() is not None or named(words) - {killed},
                f"{words} is there again",
            )
        written = "".join(each.read_text() for each in logs.iterdir())
        assert "Traceback" not in written, written[written.index("Traceback") :]
        assert "zygote.restarted" not in written
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    finally:
        if process.poll() is None:
            for each in psutil.Process(process.pid).children(recursive=True):
                each.kill()
            process.kill()


@pytest.mark.parametrize("reader", ["gone", "full"])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_who_cannot_tell_keeps_its_cluster_running(tmp_path: Path, reader: str, options: list[str]):
    path = write_cluster(tmp_path)
    (tmp_path / "said").touch()
    if reader == "gone":
        read, out = os.pipe()
        os.close(read)
    else:
        out = os.open("/dev/full", os.O_WRONLY)
    argv = [sys.executable, "-m", "understudy", "up", str(path), *options]
    with subprocess.Popen(argv, stdout=out, stderr=out) as process:
        os.close(out)
        endure(tmp_path, process)


def ignore_children() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def block_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def close_descriptors() -> None:
    os.closerange(0, 3)


@pytest.mark.parametrize("circumstance", [ignore_children, block_signals, close_descriptors])
def test_what_is_inherited_changes_nothing(tmp_path: Path, circumstance: Callable[[], None]):
    argv = [sys.executable, "-m", "understudy", "up", str(write_cluster(tmp_path))]
    with (
        open(tmp_path / "said", "wb") as said,
        subprocess.Popen(argv, preexec_fn=circumstance, stdout=said, stderr=said) as process,
    ):
        endure(tmp_path, process)


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "understudy", *words],
        env={**os.environ, **environment}, capture_output=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("command", ["gateway g1", "agent n1"])
def test_a_call_that_is_refused_is_named(tmp_path: Path, command: str):
    """By a container's old profile of what is permitted."""
    refuse = "def refuse(*_): raise PermissionError(1, 'Operation not permitted')"
    code = f"import os\n{refuse}\nos.pidfd_open = refuse\nfrom understudy.cli.app import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split(), "--cluster", str(write_cluster(tmp_path))],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "pidfd_open is refused here (Operation not permitted)" in done.stderr
    assert "Traceback" not in done.stderr


ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.parametrize("environment", [ASCII, {"LC_ALL": "C.UTF-8"}])
def test_a_place_that_is_no_text_is_refused_in_a_sentence(tmp_path: Path, environment: dict[str, str]):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    path = write_cluster(folder)
    for words in (["up", str(path)], ["check", str(path)], ["agent", "n1", "--cluster", str(path)]):
        done = run(*words, **environment)
        assert done.returncode == 2
        assert b"Traceback" not in done.stderr
    assert b"is not UTF-8" in done.stderr


@pytest.mark.parametrize("environment", [ASCII, {"LC_ALL": "C.UTF-8"}])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_manifest_whose_path_is_no_text_ends_no_cluster(
    tmp_path: Path, environment: dict[str, str], options: list[str]
):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    path = write_cluster(folder, str(tmp_path / "data"))
    path.write_text('apps = ["missing/APP.toml"]\n' + path.read_text())
    argv = [sys.executable, "-m", "understudy", "up", str(path), *options]
    log = tmp_path / "log"
    with (
        log.open("wb") as out,
        subprocess.Popen(argv, stdout=out, stderr=out, env={**os.environ, **environment}) as process,
    ):
        try:
            done = '"logs":' if options else "Ctrl-C"
            until(lambda: done in log.read_text() or process.poll() is not None, "it is up")
            time.sleep(1)  # problems are reported meanwhile
            assert process.poll() is None, log.read_text()
            assert "missing/APP.toml" in log.read_text()
            process.terminate()
            assert process.wait(PATIENCE_S) == 1
        finally:
            process.terminate()
    assert "Traceback" not in log.read_text()


def command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has ended meanwhile
        return []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a namespace of processes here")
def test_as_process_1_whatever_loses_its_parent_is_reaped(tmp_path: Path):
    path = write_cluster(tmp_path)
    log = tmp_path / "log"
    argv = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    argv += [sys.executable, "-m", "understudy", "up", str(path)]
    with log.open("wb") as out, subprocess.Popen(argv, stdout=out, stderr=out) as process:
        try:
            until(lambda: "is up" in log.read_text() or process.poll() is not None, log.read_text())
            (init,) = psutil.Process(process.pid).children()

            def named(*words: str) -> list[psutil.Process]:
                return [each for each in init.children(recursive=True) if set(words) <= set(command(each))]

            (agent,) = named("agent", "n1")
            until(
                lambda: [c for c in agent.children(recursive=True) if "worker" in " ".join(command(c))],
                "workers",
            )
            orphans = agent.children(recursive=True)
            agent.send_signal(signal.SIGKILL)
            for each in orphans:
                with contextlib.suppress(psutil.NoSuchProcess):  # its agent's end was its own
                    each.send_signal(signal.SIGKILL)
            until(lambda: not any(each.is_running() for each in orphans), "they are reaped")
            until(lambda: named("agent", "n1"), "an agent again")
            assert not [each for each in init.children(recursive=True) if each.status() == "zombie"]
            init.terminate()  # as a container's end
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()


# As `python -m understudy`, once the interpreter is there.
BEGUN = "import runpy; print(flush=True); runpy.run_module('understudy', run_name='__main__', alter_sys=True)"


@pytest.mark.parametrize("delay_s", [0.02, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0])
def test_ctrl_c_ends_a_command_without_a_traceback(delay_s: float):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        words = ["status", "--url", f"http://127.0.0.1:{silent.getsockname()[1]}"]
        with subprocess.Popen(
            [sys.executable, "-c", BEGUN, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            time.sleep(delay_s)
            process.send_signal(signal.SIGINT)
            assert process.stderr.read() == b""
    assert process.returncode == 130
