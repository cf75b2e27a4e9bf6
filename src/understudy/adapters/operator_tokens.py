"""The token by which an operator's commands are known to the roles of this machine.

It is made by the first role that needs it, in the data directory, for its owner's eyes alone; commands of the
same user find it there, or under the address that they ask. Whoever can read the file could do all that it
permits anyway.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, urlsplit

import structlog

from understudy.adapters.own_files import for_us_alone
from understudy.core.webpages import is_loopback
from understudy.wire.errors import ConfigError

FILE_NAME = "operator.token"
TOKEN_BYTES = 32
TOKEN_CHARS_MAX = 200
EVERY_INTERFACE = ("0.0.0.0", "[::]", "")
VARIABLE = "UNDERSTUDY_TOKEN"

log = structlog.get_logger()


def kept_token(data_dir: Path) -> str:
    """That of the cluster whose state is in `data_dir`, made if there is none.

    Empty where it can't be kept, or isn't ours alone.
    """
    path = data_dir / FILE_NAME
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.path.lexists(path):
            _write(path, secrets.token_urlsafe(TOKEN_BYTES), anew=True)
        return _read(path)
    except (OSError, ConfigError) as error:
        log.warning("token.unusable", path=str(path), reason=str(error))
        return ""


def operator_token(data_dir: Path) -> str:
    """As `kept_token`; else one that nobody has and that lasts as long as this process."""
    return kept_token(data_dir) or secrets.token_urlsafe(TOKEN_BYTES)


def announce(token: str, addresses: Iterable[str]) -> None:
    """Let commands of this user find `token` under each "host:port" where it is asked for."""
    try:
        folder = _places()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for address in addresses:
            _write(folder / _file_of(address), token, anew=False)
    except (OSError, RuntimeError) as error:  # no home, or not ours to write to
        log.warning("token.unannounced", reason=str(error), hint="commands find it by --cluster FILE")


def known_token(url: str, data_dir: Path | None = None) -> str:
    """For a server at `url`: the environment's, else the cluster's own, else the one announced there.

    Raises `ConfigError` for one of the environment that can't be sent.
    """
    if given := given_token():
        return given
    with contextlib.suppress(OSError, ConfigError, RuntimeError):
        if data_dir is not None and (data_dir / FILE_NAME).exists():
            return _read(data_dir / FILE_NAME)
    with contextlib.suppress(OSError, ConfigError, RuntimeError):
        return _read(_places() / _file_of(urlsplit(url).netloc))
    return ""


def given_token() -> str:
    """The environment's. Raises `ConfigError`."""
    given = os.environ.get(VARIABLE, "").strip()
    if not given.isascii() or not given.isprintable():
        raise ConfigError(f"{VARIABLE} is not a line of printable ASCII")
    return given


def _places() -> Path:
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return base / "understudy" / "tokens"


def _file_of(address: str) -> str:
    """Named after "host:port"; all that leads to this machine by itself has one name."""
    host, _, port = address.rpartition(":")
    local = is_loopback(f"{host}:") or host in EVERY_INTERFACE
    return f"local:{port}" if local else quote(address, safe="")


def _write(path: Path, token: str, *, anew: bool) -> None:
    """Whole or not at all, and never where others could read it."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(part, "x", opener=for_us_alone) as writer:
            writer.write(token + "\n")
        if anew:
            with contextlib.suppress(FileExistsError):  # another role was first
                os.link(part, path)
        else:
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _read(path: Path) -> str:
    """Raises `ConfigError` for a file that others could have read or written."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), encoding="ascii") as reader:
        status = os.fstat(reader.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (os.geteuid(), 0):
            raise ConfigError(f"{path}: not a file of ours")
        if status.st_mode & 0o077:
            raise ConfigError(f"{path}: others may read or write it; mend it with: chmod 600 {path}")
        try:
            token = reader.read(TOKEN_CHARS_MAX + 1).strip()
        except UnicodeDecodeError:
            token = ""
    if not token or not token.isprintable() or len(token) > TOKEN_CHARS_MAX:
        raise ConfigError(f"{path}: holds no token; remove it to have one made")
    return token
