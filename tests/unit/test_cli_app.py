"""The command line itself: quick to start, every command there, mistakes answered with the right status."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import understudy
from understudy.cli.app import app
from understudy.cli.exits import Exit

EXAMPLE = Path(__file__).parents[2] / "examples" / "quickstart"
COMMANDS = {
    "up", "demo", "controller", "gateway", "agent", "deploy", "remove", "drain", "undrain", "quarantine",
    "status", "plan", "audit", "check", "events", "failures", "infer", "version",
}  # fmt: skip
HEAVY = {
    "asyncio",
    "highspy",
    "http.client",
    "litestar",
    "numpy",
    "onnxruntime",
    "rich.live",
    "structlog",
    "uvloop",
}


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


def test_help_names_every_command(runner: CliRunner) -> None:
    shown = runner.invoke(app, ["--help"])
    assert shown.exit_code == 0
    assert {word for line in shown.stdout.splitlines() for word in line.split()[1:2]} >= COMMANDS
    assert "Exit status" in shown.stdout


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(runner: CliRunner, command: str) -> None:
    shown = runner.invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert "--parent" not in shown.stdout


def test_whoever_asks_a_cluster_takes_its_address_in_each_way() -> None:
    commands: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
    for name in ("quarantine", "audit"):
        commands |= {f"{name} {nested}": each for nested, each in commands.pop(name).commands.items()}
    elsewhere = {"up", "demo", "simulate", "controller", "gateway", "agent", "check", "version"}
    for name in commands.keys() - elsewhere:
        options = {option: param.envvar for param in commands[name].params for option in param.opts}
        assert options.get("--url") == "UNDERSTUDY_URL", name
        assert {"--cluster", "--json"} <= options.keys(), name
        if name in ("status", "failures", "infer"):
            assert options.get("--gateway") == "UNDERSTUDY_GATEWAY", name
            assert {"--api-key-file", "--ca"} <= options.keys(), name


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, understudy.cli.app; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(loaded.stdout.split())


def test_up_takes_the_directory_of_a_cluster_file(runner: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "CLUSTER.toml").write_text("nodes = 1")
    done = runner.invoke(app, ["up", str(tmp_path)])
    assert (done.exit_code, f"{tmp_path}/CLUSTER.toml: nodes: " in done.stderr.replace("\n", "")) == (
        Exit.USAGE,
        True,
    )


def test_version(runner: CliRunner) -> None:
    for asked in ("version", "--version"):
        assert runner.invoke(app, [asked]).stdout == f"understudy {understudy.__version__}\n"
    assert json.loads(runner.invoke(app, ["version", "--json"]).stdout) == {"version": understudy.__version__}


def test_commands_in_the_docs_are_understood(runner: CliRunner) -> None:
    """Each line that begins with `understudy` in a block of code; a prompt may stand before it."""
    root = Path(__file__).parents[2]
    wrong, count = [], 0
    for page in [root / "README.md", *(root / "docs").glob("*.md"), *(root / "examples").rglob("*.md")]:
        blocks = re.findall(r"^```(?:sh|console)$(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
        for line in re.findall(r"^(?:\$ )?understudy (.*)", "\n".join(blocks), re.MULTILINE):
            count += 1
            # Help comes after everything else was understood, and instead of doing it.
            done = runner.invoke(app, [*shlex.split(line, comments=True), "--help"])
            if done.exit_code != Exit.OK:
                wrong.append(f"{page.relative_to(root)}: understudy {line}")
    assert not wrong, "\n".join(wrong)
    assert count > 20


@pytest.mark.parametrize("args", [["statsu"], ["infer", "app"], ["deploy"], ["events", "--limit", "0"]])
def test_wrong_usage_is_2(runner: CliRunner, args: list[str]) -> None:
    done = runner.invoke(app, args)
    assert done.exit_code == Exit.USAGE
    assert done.stdout == ""


@pytest.mark.parametrize("command", ["controller", "gateway", "agent"])
def test_an_unknown_name_lists_the_known(runner: CliRunner, command: str) -> None:
    done = runner.invoke(app, [command, "nobody", "--cluster", str(EXAMPLE / "CLUSTER.toml")])
    assert done.exit_code == Exit.USAGE
    assert "named 'nobody' in the cluster file; it has:" in done.stderr


def test_a_wrong_cluster_file_names_the_field(runner: CliRunner, tmp_path: Path) -> None:
    cluster = tmp_path / "CLUSTER.toml"
    cluster.write_text('nodes = [{ name = "n1", memory = 512 }]')
    for args in (
        ["up", str(cluster)],
        ["status", "--cluster", str(cluster)],
        ["agent", "n1", "--cluster", str(cluster)],
    ):
        done = runner.invoke(app, args)
        assert done.exit_code == Exit.USAGE
        assert "nodes[...].memory: unknown field; did you mean 'memory_mb'?" in done.stderr.replace(
            "[0]", "[...]"
        )


def test_up_refuses_a_cluster_file_that_makes_no_sense(runner: CliRunner, tmp_path: Path) -> None:
    cluster = tmp_path / "CLUSTER.toml"
    cluster.write_text('nodes = [{ name = "n1", memory_mb = 512 }]\nnode = 3')
    done = runner.invoke(app, ["up", str(cluster)])
    assert done.exit_code == Exit.USAGE
    assert "node: unknown field; did you mean 'nodes'?" in done.stderr
    assert not (tmp_path / "understudy-data").exists()


def test_the_examples_accuracies_are_true() -> None:
    """Computed over what the manifest says: the numbers below 10,000."""
    import numpy as np

    numbers = {"number": np.arange(10_000)[:, None]}
    sieve = [n > 1 and all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(10_000)]
    manifest = tomllib.loads((EXAMPLE / "primes" / "APP.toml").read_text())
    for variant in manifest["variants"]:
        scope: dict[str, type] = {}
        path = EXAMPLE / "primes" / variant["artifact"]
        exec(compile((path / "model.py").read_text(), path, "exec"), scope)
        model = scope["Model"]()
        model.load(str(path))
        right = model.predict(numbers)["prime"][:, 0] == sieve
        assert variant["accuracy"] == pytest.approx(right.mean(), abs=0.001)
