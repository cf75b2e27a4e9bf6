"""Wheels into a directory, for an interpreter's path. Asks nobody for anything. Blocks."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

from understudy.adapters.disks import is_place_trouble
from understudy.wire.errors import Code, UnderstudyError

BLOCK_BYTES = 4096  # files take whole ones of a disk
NICENESS = 10  # workers serve beside it
OURS = "understudy"  # always that of this installation


def install_wheels(wheels: Path, target: Path) -> None:
    """All wheels of a directory into `target`, made anew; each is checked against its own record.

    Raises LOAD_FAILED naming the wheel that is damaged or isn't for this interpreter, UNAVAILABLE where the
    place is at fault. What was installed until then stays in `target`.
    """
    for path in target.glob("*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    target.mkdir(parents=True, exist_ok=True)
    for wheel in sorted(wheels.glob("*.whl")):
        try:
            _install(wheel, target)
        except UnderstudyError:
            raise
        except Exception as error:  # a wheel is anybody's file
            code = Code.UNAVAILABLE if is_place_trouble(error) else Code.LOAD_FAILED
            raise UnderstudyError(code, f"{wheel.name} can't be installed: {_told(error)}") from error


def installed_bytes(wheels: Path) -> int:
    """What all wheels of a directory take on a disk once installed, about; a damaged one takes nothing."""
    total = 0
    for wheel in wheels.glob("*.whl"):
        with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                blocks = -(-entry.file_size // BLOCK_BYTES)
                total += blocks * BLOCK_BYTES * (2 if entry.filename.endswith(".py") else 1)  # its bytecode
    return total


def _install(wheel: Path, target: Path) -> None:
    from installer import install
    from installer.destinations import SchemeDictionaryDestination
    from installer.sources import WheelFile
    from packaging.tags import sys_tags
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    try:
        name, _, _, tags = parse_wheel_filename(wheel.name)
    except InvalidWheelFilename as error:
        raise UnderstudyError(Code.LOAD_FAILED, f"{wheel.name} is no wheel's name: {error}") from error
    if name == OURS:
        return
    if tags.isdisjoint(sys_tags()):
        raise UnderstudyError(Code.LOAD_FAILED, f"{wheel.name} is not for {_this(tags)}")
    folders = {"purelib": target, "platlib": target}
    # Nobody runs these; they have to be somewhere.
    folders |= {kind: target / ".other" / kind for kind in ("headers", "scripts", "data")}
    destination = SchemeDictionaryDestination(
        {kind: str(path) for kind, path in folders.items()},
        interpreter=sys.executable,
        script_kind="posix",
        bytecode_optimization_levels=[0],
        overwrite_existing=True,  # several packages may bring the same `tests`, say
    )
    with WheelFile.open(wheel) as source:
        source.validate_record()
        install(source, destination, {})


def _this(tags: Iterable[object]) -> str:
    asked = ", ".join(sorted(map(str, tags))[:4])
    version = platform.python_version()
    return f"this node's Python ({platform.python_implementation()} {version}, {platform.machine()}): {asked}"


def _told(error: BaseException) -> str:
    if isinstance(error, zipfile.BadZipFile):
        return "it is no zip archive, or a damaged one"
    issues = getattr(error, "issues", None)
    return "; ".join(issues[:3]) if isinstance(issues, list) else f"{type(error).__name__}: {error}"


def main() -> None:
    """`python -m understudy.adapters.wheels WHEELS TARGET`; on failure the code and message."""
    os.nice(NICENESS)
    try:
        install_wheels(Path(sys.argv[1]), Path(sys.argv[2]))
    except UnderstudyError as error:
        sys.exit(f"{error.code} " + error.message.replace("\n", " "))


if __name__ == "__main__":
    main()
