"""The packages that a model names, as wheels: resolved once, here, by pip, and packed into one file.

Which registries and credentials pip asks is pip's own business (its configuration, PIP_* variables).
What the nodes then install is the same wheels everywhere, without asking anybody.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import IO, NamedTuple

from understudy.wire.errors import Code, CommandError, ConfigError

RESOLVE_TIMEOUT_S = 1800.0  # of pip: it may have to build some of them
REASON_LINES_MAX = 30


class Wheels(NamedTuple):
    content: IO[bytes]  # a tar file, the same for the same wheels
    names: tuple[str, ...]  # "inflection 0.5.1"


def resolve(where: str, requirements: Path | None, folder: Path | None) -> Wheels:
    """Those that `requirements` asks for, from `folder` alone if there is one; else all of `folder`.

    Raises `CommandError` with pip's own words.
    """
    if requirements is None:
        return _packed(where, _wheels_in(folder or Path()))
    with tempfile.TemporaryDirectory(prefix="understudy-wheels-") as made:
        _run_pip(where, requirements, folder, Path(made))
        return _packed(where, _wheels_in(Path(made)))


def check(where: str, requirements: Path | None, folder: Path | None) -> None:
    """Raises `ConfigError` for what isn't there."""
    if requirements is not None and not requirements.is_file():
        raise CommandError(
            Code.CONFIG,
            f"{where}.requirements: {requirements} is no file (looked at {requirements.absolute()})",
            "the path is relative to the manifest",
        )
    if folder is not None and not _wheels_in(folder):
        raise CommandError(
            Code.CONFIG,
            f"{where}.wheels: {folder} is no directory with *.whl files (looked at {folder.absolute()})",
            "the path is relative to the manifest; `pip wheel -r requirements.txt -w DIR` makes one",
        )


def _wheels_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.whl"))


def _run_pip(where: str, requirements: Path, folder: Path | None, made: Path) -> None:
    ours = made / "understudy.txt"
    ours.write_text("\n".join(own_requirements()))
    command = [sys.executable, "-P", "-m", "pip", "wheel", "--no-input", "--disable-pip-version-check"]
    command += ["--wheel-dir", str(made), "--requirement", requirements.name, "--constraint", str(ours)]
    own = dict(os.environ)
    if folder is not None:
        own |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": folder.resolve().as_uri()}
    try:
        # Paths in the file are relative to it, as most people expect.
        done = subprocess.run(
            command,
            cwd=requirements.resolve().parent,
            env=own,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=RESOLVE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{where}.requirements: pip took more than {RESOLVE_TIMEOUT_S:g} s") from None
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise CommandError(
            Code.CONFIG,
            f"{where}.requirements: pip resolves them, and {sys.executable} has none",
            f"`{sys.executable} -m ensurepip` installs it; or give the wheels: wheels = DIR",
        )
    raise CommandError(
        Code.CONFIG,
        f"{where}.requirements: pip can't have what {requirements} asks for:\n"
        + _reason(done.stdout, done.stderr),
        _hint(done.stdout + done.stderr),
    )


def own_requirements() -> list[str]:
    """What Understudy itself needs beside a model's packages, as pip writes it."""
    needed = importlib.metadata.requires("understudy") or []
    return [line for line in needed if "extra ==" not in line]


def _hint(said: str) -> str:
    """The constraints that pip is given are all ours."""
    if "(constraint)" in said:
        return "Understudy's own requirements hold too: its workers run in the same process"
    if "No matching distribution" in said:
        return "is its name right, and its version, and can pip ask a registry from here that has it?"
    return ""


def _reason(said: str, complained: str) -> str:
    """What pip says of a conflict and of errors, without its progress."""
    _, found, conflict = said.partition("The conflict is caused by:")
    lines = [line.strip() for line in conflict.splitlines()] if found else []
    lines += [line for line in complained.splitlines() if not line.startswith(("WARNING:", "[notice]"))]
    kept = [line for line in lines if line.strip()]
    return "\n".join(kept[-REASON_LINES_MAX:])


def _packed(where: str, wheels: list[Path]) -> Wheels:
    content = tempfile.TemporaryFile()  # noqa: SIM115 - the package closes it
    try:
        with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for wheel in wheels:
                entry = tarfile.TarInfo(wheel.name)  # its name and content only
                with wheel.open("rb") as source:
                    source.seek(0, 2)
                    entry.size = source.tell()
                    source.seek(0)
                    tar.addfile(entry, source)
    except OSError as error:
        content.close()
        raise ConfigError(f"{where}.requirements: the wheels can't be packed: {error}") from error
    return Wheels(content, tuple(_named(wheel.name) for wheel in wheels))


def _named(file_name: str) -> str:
    name, version = re.split("-", file_name, maxsplit=2)[:2] if file_name.count("-") > 1 else (file_name, "")
    return f"{name.replace('_', '-')} {version}".strip()
