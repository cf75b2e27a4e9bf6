"""Everything that is installed has hashes, in locks/ and beside each peer of the benchmarks."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PIN = re.compile(r"([a-z0-9-]+)==([\w.+!]+)(?: ; [^\n]*?)? \\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)")
OTHER_GROUP = Requirement("understudy")  # is included, and looked at by itself
ALL = ("onnx", "controller", "auth", "grpc")
INSTALLS = re.compile(r"\bpip\W.*\b(install|download|wheel)\b")


def locked(file: Path) -> dict[str, str]:
    """The version of each package; every line belongs to a pin with its hashes."""
    text = "".join(line for line in file.read_text().splitlines(True) if not line.startswith("#"))
    assert not PIN.sub("", text), f"{file}: {PIN.sub('', text)[:200]}"
    return {name: version for name, version, _ in PIN.findall(text)}


def test_everything_we_depend_on_is_locked(root: Path) -> None:
    definition = tomllib.loads((root / "pyproject.toml").read_text())
    project, groups = definition["project"], definition["dependency-groups"]
    extras = project["optional-dependencies"]
    every, build = list(extras.values()), groups["build"] + definition["build-system"]["requires"]
    for file, *wanted in (
        ("dev", project["dependencies"], *every, groups["dev"], groups["tests"], build),
        ("demo", project["dependencies"], *every, build),
        ("lowest", project["dependencies"], *(extras[name] for name in ALL), groups["tests"], build),
        ("pytorch", project["dependencies"], groups["pytorch"], build),
        ("examples", groups["examples"]),
    ):
        pins = locked(root / "locks" / f"{file}.txt")
        for line in itertools.chain(*wanted):
            requirement = Requirement(line) if isinstance(line, str) else OTHER_GROUP
            if (name := canonicalize_name(requirement.name)) != "understudy":
                assert name in pins, f"`make lock`: {file} lacks {name}"
                assert requirement.specifier.contains(pins[name]), (
                    f"`make lock`: {file} has {name} {pins[name]}"
                )


def test_nothing_is_installed_without_hashes(root: Path) -> None:
    """But for this project itself. What make would run, and what scripts do."""
    targets = re.findall(r"^([a-z0-9-]+):", (root / "Makefile").read_text(), re.MULTILINE)
    environment = {**os.environ, "CI": "true", "MAKEFLAGS": ""}
    command = ["make", "--dry-run", "--always-make", *targets]
    ran = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    scripts = [*(root / ".ci").iterdir(), *(root / "tests").glob("*.sh")]
    lines = (
        "".join([ran.stdout, *(script.read_text() for script in scripts)]).replace("\\\n", " ").splitlines()
    )
    installs = [line for line in lines if INSTALLS.search(line)]
    assert len(installs) > 8
    ours = re.compile(r"--no-deps --no-build-isolation (--editable )?\.$")
    assert not [line for line in installs if "--require-hashes" not in line and not ours.search(line)]
    programs = [path for folder in ("tests", "benchmarks") for path in (root / folder).rglob("*.py")]
    texts = [path.read_text() for path in programs if path != Path(__file__)]
    asking = [text for text in texts if '"pip"' in text]
    assert len(asking) > 1
    assert all("--require-hashes" in text for text in asking)
    for file in [*(root / "benchmarks" / "peers").glob("*/requirements.txt"), *(root / "locks").iterdir()]:
        assert locked(file)


def test_every_library_has_a_least_version(root: Path) -> None:
    """Which the lock of least versions has: nothing lifts it."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    pins = locked(root / "locks" / "lowest.txt")
    for line in itertools.chain(project["dependencies"], *project["optional-dependencies"].values()):
        requirement = Requirement(line)
        if (name := canonicalize_name(requirement.name)) != "understudy":
            (least,) = requirement.specifier
            assert least.operator == ">=", line
            assert (
                name not in pins or Version(pins[name]).release[:2] == Version(least.version).release[:2]
            ), line
