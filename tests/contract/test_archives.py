"""Archives from anybody: plain files inside the folder, or a clear refusal and nothing left."""

from __future__ import annotations

import gzip
import io
import os
import random
import resource
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from understudy.adapters import archives
from understudy.adapters.archives import DEPTH_MAX, HEADER_BYTES_MAX, unpack
from understudy.wire.errors import Code, UnderstudyError


def entry(name: str, content: bytes = b"x", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def packed(*entries: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=format) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


def unpacked(folder: Path, archive: bytes) -> dict[str, bytes]:
    """Files by their paths."""
    (folder / "a.tar").write_bytes(archive)
    unpack(folder / "a.tar", folder / "replica")
    paths = sorted((folder / "replica").rglob("*"))
    return {str(path.relative_to(folder / "replica")): path.read_bytes() for path in paths if path.is_file()}


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_plain_files_come_out_as_they_went_in(tmp_path: Path, format: int) -> None:
    long = "d/" * 8 + "n" * 90
    files = {
        "model.py": b"x = 1",
        long: b"long",
        "d/empty": b"",
        "./dotted": b"d",
        "zero\u00e9": b"\0" * 3000,
    }
    archive = packed(*[entry(name, content) for name, content in files.items()], format=format)
    assert unpacked(tmp_path, archive) == {name.removeprefix("./"): data for name, data in files.items()}


def test_unpacking_starts_afresh(tmp_path: Path) -> None:
    (tmp_path / "replica").mkdir()
    (tmp_path / "replica" / "leftover").touch()
    assert unpacked(tmp_path, packed(entry("model.py"))) == {"model.py": b"x"}


def test_only_whether_it_runs_is_taken_from_a_mode(tmp_path: Path) -> None:
    unpacked(tmp_path, packed(entry("run", mode=0o6777), entry("read", mode=0o000)))
    modes = [(tmp_path / "replica" / name).stat().st_mode & 0o7777 for name in ("run", "read")]
    assert modes == [0o755 & ~current_umask(), 0o644 & ~current_umask()]


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def linked(kind: bytes, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry("inside", b"", type=kind, linkname=target)


def oversized_header() -> bytes:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**33
    return info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096


def folders_unlisted() -> bytes:
    """Few entries, and many directories on the way to them."""
    return packed(*[entry(f"{number}/" * (DEPTH_MAX - 1) + "f") for number in range(4)])


def sparse() -> bytes:
    fields = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**40),
              "GNU.sparse.name": "huge"}  # fmt: skip
    lines = b"40000\n" + b"1\n" * 80_000
    return packed(entry("huge", lines, pax_headers=fields))


REFUSED: dict[str, Callable[[], bytes]] = {
    "a parent": lambda: packed(entry("../outside")),
    "a parent on the way": lambda: packed(entry("a/../../outside")),
    "an absolute path": lambda: packed(entry("/outside")),
    "an empty step": lambda: packed(entry("a//b")),
    "a symbolic link": lambda: packed(linked(tarfile.SYMTYPE, "/etc"), entry("inside/outside")),
    "a hard link": lambda: packed(linked(tarfile.LNKTYPE, "/etc/passwd")),
    "a device": lambda: packed(linked(tarfile.CHRTYPE, "")),
    "a pipe": lambda: packed(linked(tarfile.FIFOTYPE, "")),
    "a file twice": lambda: packed(entry("a"), entry("a")),
    "a file below a file": lambda: packed(entry("a"), entry("a/b")),
    "a folder over a file": lambda: packed(entry("a"), entry("a", b"", type=tarfile.DIRTYPE)),
    "too deep": lambda: packed(entry("d/" * DEPTH_MAX + "f")),
    "a name too long for a file": lambda: packed(entry("n" * 300)),
    "a header of gigabytes": oversized_header,
    "long attributes": lambda: packed(entry("a", pax_headers={"comment": "x" * HEADER_BYTES_MAX})),
    "attributes of absurd length": lambda: packed(entry("a", b"9" * 20 + b" path=x\n", type=tarfile.XHDTYPE)),
    "a file with holes": sparse,
    "compressed": lambda: gzip.compress(packed(entry("a", b"\0" * 10_000_000))),
    "cut off": lambda: packed(entry("a", b"x" * 5000))[:2000],
    "cut off, of a long name": lambda: packed(entry("/".join(["n" * 200] * 15), b"x" * 5000))[:6000],
    "a name of many steps": lambda: packed(entry("n/" * 20_000)),
    "no archive": lambda: b"something else" * 1000,
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("what", sorted(REFUSED))
def test_what_is_no_plain_file_inside_is_refused_and_nothing_is_left(tmp_path: Path, what: str) -> None:
    archive = REFUSED[what]()
    with pytest.raises(UnderstudyError, match="can't be unpacked") as caught:
        unpacked(tmp_path, archive)
    assert caught.value.code is Code.LOAD_FAILED
    assert len(str(caught.value)) < 1000
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_directories_count_that_no_entry_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "FILES_MAX", 4 * DEPTH_MAX)
    assert len(unpacked(tmp_path, folders_unlisted())) == 4
    monkeypatch.setattr(archives, "FILES_MAX", 4 * DEPTH_MAX - 1)
    with pytest.raises(UnderstudyError, match="more than 127 files and directories"):
        unpacked(tmp_path, folders_unlisted())
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


PIECES = (b"\x80" + b"\xff" * 7, b"7" * 11, b"..", b"/", b"L", b"x", b"S", b"5")  # of sizes, names and types


def test_any_bytes_are_unpacked_or_refused_within_the_folder(tmp_path: Path) -> None:
    """Damaged in any place: headers lie about sizes, kinds and names."""
    rng = random.Random(7)
    whole = packed(
        entry("a/b", b"1" * 700),
        entry("n" * 150),
        entry("c", pax_headers={"path": "p" * 120}),
        entry("d", b""),
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes: Counter[tuple[bool, str]] = Counter()  # (blamed on the place, what was done)
    for _ in range(3000):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(damaged) // 512) * 512
            start = at + rng.choice((0, 100, 124, 136, 148, 156, 157, 257, rng.randrange(512)))
            piece = rng.choice((*PIECES, rng.randbytes(8)))
            damaged[start : start + len(piece)] = piece
            fix_checksum(damaged, at)
        try:
            unpacked(tmp_path, bytes(damaged[: len(whole)]))
        except UnderstudyError as error:
            outcomes[error.code is not Code.LOAD_FAILED, "refused"] += 1
        else:
            outcomes[False, "unpacked"] += 1
        assert {path.name for path in tmp_path.iterdir()} <= {"a.tar", "replica"}
    assert set(outcomes) == {(False, "refused"), (False, "unpacked")}
    assert min(outcomes.values()) > 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def fix_checksum(archive: bytearray, at: int) -> None:
    header = archive[at : at + 512]
    header[148:156] = b" " * 8
    archive[at + 148 : at + 156] = b"%06o\0 " % sum(header)
