"""Archives from anybody: plain files within the folder, and not more of them than may be, or a clear refusal.

They are unpacked where writing costs no disk. How many files there may be is lowered to what a short archive
can exceed. Whatever lies in the folder afterwards is looked at, and so is everything around it.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import fuzzing
from mutations import NUMBERS, TOKENS, mutated
from tensors_target import assert_short

from understudy.adapters import archives
from understudy.wire.errors import Code, UnderstudyError

FILES_MAX = 40  # instead of the product's
BLOCK = 512
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
OUTSIDE = fuzzing.MEMORY / "understudy-fuzz-outside"  # what an absolute path would be
STEPS = ("a", "b", "model.py", "n" * 90, "zero\u00e9", "x y", "-", "~")
BAD_STEPS = ("..", ".", "", "n" * 300, "n\0n", "\n", "\udcff", "a\\b")
KINDS = (
    tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
    tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE, tarfile.XGLTYPE, b"V", b"\0", b"9",
)  # fmt: skip
KEYWORDS = (
    "path", "linkpath", "size", "mode", "uid", "mtime", "hdrcharset", "comment", "GNU.sparse.major",
    "GNU.sparse.minor", "GNU.sparse.realsize", "GNU.sparse.name", "GNU.sparse.map", "GNU.sparse.size",
)  # fmt: skip
VALUES = (
    "", "0", "1", "-1", "7", "../outside", str(OUTSIDE), "a/b", "1e9", "9" * 30, "BINARY", "0,1,2,3",
    "x" * 300, "\0", "nan", "2.5",
)  # fmt: skip
FIELDS = ((0, 100), (100, 8), (124, 12), (136, 12), (148, 8), (156, 1), (157, 100), (257, 8), (345, 155))
SIZES = (
    b"\x80" + b"\xff" * 11,
    b"\xff" * 12,
    b"\x80" + b"\0" * 7 + b"\1\0\0\0",
    b"7" * 11 + b"\0",
    b"-1",
    b"",
)


class ArchivesTarget:
    name = "archives"

    def __init__(self) -> None:
        self._around = fuzzing.folder_of(self)
        inner = self._around / "1" / "2" / "3"
        inner.mkdir(parents=True)
        self._archive, self._folder = inner / "a.tar", inner / "replica"

    def generate(self, rng: Random) -> list[bytes]:
        if rng.random() < 0.02:
            return [_no_tar(rng)]
        archive = packed(rng)
        how = rng.random()
        if how < 0.3:
            archive = _with_other_headers(rng, archive)
        elif how < 0.4:
            archive = mutated(rng, archive)
        return [archive]

    def check(self, pieces: list[bytes]) -> str:
        (archive,) = pieces
        self._archive.write_bytes(archive)
        try:
            with _few_files():
                archives.unpack(self._archive, self._folder)
        except UnderstudyError as refusal:
            self._assert_refused(refusal)
            return "refused"
        self._assert_alone("a.tar", "replica")
        files, size_bytes = _looked_at(self._folder)
        assert size_bytes <= len(archive), "more than its bytes"
        assert files <= FILES_MAX, f"{files} files and directories"
        return f"unpacked, {'some files' if files else 'empty'}"

    def _assert_refused(self, refusal: UnderstudyError) -> None:
        assert refusal.code is Code.LOAD_FAILED, refusal
        assert_short(refusal)
        self._assert_alone("a.tar")

    def _assert_alone(self, *names: str) -> None:
        """Nothing but these lies anywhere around the folder."""
        place = self._around
        for step in ("1", "2", "3"):
            assert os.listdir(place) == [step], os.listdir(place)
            place /= step
        assert set(os.listdir(place)) == set(names), os.listdir(place)
        assert not OUTSIDE.exists()


@contextlib.contextmanager
def _few_files() -> Iterator[None]:
    files_max, archives.FILES_MAX = archives.FILES_MAX, FILES_MAX
    try:
        yield
    finally:
        archives.FILES_MAX = files_max


def _looked_at(folder: Path) -> tuple[int, int]:
    """How many files and directories, and the bytes of the files."""
    files = size_bytes = 0
    waiting = [(os.fspath(folder), 0)]
    while waiting:
        path, depth = waiting.pop()
        assert depth <= archives.DEPTH_MAX, path
        for each in os.scandir(path):
            status = each.stat(follow_symlinks=False)
            files += 1
            if stat.S_ISDIR(status.st_mode):
                waiting.append((each.path, depth + 1))
                continue
            assert stat.S_ISREG(status.st_mode), each
            assert status.st_nlink == 1, each
            assert not status.st_mode & 0o7022, oct(status.st_mode)
            size_bytes += status.st_size
    return files, size_bytes


# Archives


def packed(rng: Random) -> bytes:
    """Mostly plain files; each entry may be strange in some way."""
    form = rng.choice(FORMATS)
    strange = rng.choice((0.0, 0.0, 0.03, 0.3))
    blocks: list[bytes] = []
    for number in range(rng.choice((3, 5, 8, 20, 60) if rng.random() < 0.08 else (1, 1, 2, 3))):
        info = tarfile.TarInfo(_path(rng, strange) + (str(number) if rng.random() < 0.8 else ""))
        info.mode = rng.choice((0o644, 0o755, 0o6777, 0))
        content = rng.randbytes(rng.choice((0, 1, 5, 511, 512, 513)))
        info.size = len(content)
        if rng.random() < 0.1:
            info.type, info.size, content = tarfile.DIRTYPE, 0, b""
        if rng.random() < strange:
            info.type = rng.choice(KINDS)
            info.linkname = rng.choice(("", "a", "..", "/etc", str(OUTSIDE)))
        if rng.random() < strange:
            info.size = rng.choice((0, 1, 512, 2**33, 2**63, *NUMBERS))
        if rng.random() < strange:
            info.pax_headers = {rng.choice(KEYWORDS): rng.choice(VALUES) for _ in range(rng.randint(1, 3))}
        blocks.append(_header(info, form))
        blocks.append(content + bytes(-len(content) % BLOCK))
    return b"".join((*blocks, bytes(2 * BLOCK if rng.random() < 0.9 else 0)))


def _header(info: tarfile.TarInfo, form: int) -> bytes:
    try:
        return info.tobuf(form, "utf-8", "surrogateescape")
    except (ValueError, OverflowError):  # what the form has no room for
        info.size, info.name, info.linkname = info.size % 2**33, info.name[:90], info.linkname[:90]
        return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _path(rng: Random, strange: float) -> str:
    depth = rng.choice((1, 1, 1, 2, 3, 8) if rng.random() < 0.95 else (31, 32, 33, 200))
    steps = [rng.choice(BAD_STEPS if rng.random() < strange else STEPS) for _ in range(depth)]
    path = "/".join(steps)
    if rng.random() < strange:
        path = rng.choice(("/" + path, f"{OUTSIDE}", "../" * 4 + path, "./" + path, path + "/", "./././a"))
    return path


def _with_other_headers(rng: Random, archive: bytes) -> bytes:
    """Fields of headers replaced, with a checksum that is right."""
    changed = bytearray(archive)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(changed) // BLOCK) * BLOCK
        start, length = rng.choice(FIELDS)
        value = rng.choice(
            (*SIZES, *TOKENS, rng.choice(KINDS), b"..", b"../../x", b"%o\0" % rng.choice(NUMBERS))
        )
        changed[at + start : at + start + length] = value[:length].ljust(length, b"\0")
        if rng.random() < 0.9:
            changed[at + 148 : at + 156] = b" " * 8
            changed[at + 148 : at + 156] = b"%06o\0 " % sum(changed[at : at + BLOCK])
    return bytes(changed)


def _no_tar(rng: Random) -> bytes:
    archive = packed(rng)
    match rng.randrange(5):
        case 0:
            return gzip.compress(archive)
        case 1:
            return bz2.compress(archive)
        case 2:
            content = io.BytesIO()
            with zipfile.ZipFile(content, "w") as zipped:
                zipped.writestr("../outside", archive)
            return content.getvalue()
        case 3:
            return rng.randbytes(rng.choice((0, 1, 511, 512, 2000)))
        case _:
            return bytes(rng.choice((0, 1, BLOCK, 2 * BLOCK, 10_000)))
