"""The operator's token on disk: made once, for its owner alone, and never believed when others had it."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from understudy.adapters.operator_tokens import FILE_NAME, announce, known_token, operator_token
from understudy.wire.errors import ConfigError

URL = "http://127.0.0.1:8090"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("UNDERSTUDY_TOKEN", raising=False)
    return tmp_path / "state" / "understudy" / "tokens"


def test_all_roles_get_the_same_one_whoever_is_first(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        tokens = set(pool.map(lambda _: operator_token(tmp_path / "data"), range(64)))
    assert len(tokens) == 1
    (path,) = (tmp_path / "data").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def spoil_mode(path: Path) -> None:
    path.chmod(0o640)


def spoil_content(path: Path) -> None:
    path.write_bytes(b"\xff\0")


def spoil_emptied(path: Path) -> None:
    path.write_text("")


def spoil_link(path: Path) -> None:
    aside = path.rename(path.with_name("aside"))
    path.symlink_to(aside)


def spoil_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [spoil_mode, spoil_content, spoil_emptied, spoil_link, spoil_folder])
def test_one_that_others_may_know_or_that_is_none_permits_nothing(tmp_path: Path, spoil) -> None:  # type: ignore[no-untyped-def]
    former = operator_token(tmp_path)
    spoil(tmp_path / FILE_NAME)
    first, second = operator_token(tmp_path), operator_token(tmp_path)
    assert len({former, first, second}) == 3
    assert known_token(URL, tmp_path) == ""


def test_a_place_that_cannot_be_written_is_no_reason_not_to_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert operator_token(tmp_path / "file" / "data")


def test_commands_find_it_by_environment_then_cluster_then_address(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce("announced", ["127.0.0.1:8090", "10.0.0.1:8090"])
    for host in ("127.0.0.1", "localhost", "[::1]"):
        assert known_token(f"http://{host}:8090") == "announced"
    announce("of all interfaces", ["0.0.0.0:8091"])
    assert known_token("http://localhost:8091/x") == "of all interfaces"
    assert known_token("http://10.0.0.1:8090") == "announced"
    assert known_token("http://10.0.0.2:8090") == ""
    assert known_token("http://127.0.0.1:8092") == ""
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    own = operator_token(tmp_path / "data")
    assert known_token(URL, tmp_path / "data") == own
    monkeypatch.setenv("UNDERSTUDY_TOKEN", "two\nlines")
    with pytest.raises(ConfigError, match="UNDERSTUDY_TOKEN"):
        known_token(URL)
    monkeypatch.setenv("UNDERSTUDY_TOKEN", "given")
    assert known_token(URL, tmp_path / "data") == "given"


def test_an_address_leads_to_no_other_folder(home: Path) -> None:
    announce("t", ["../../../x:1"])
    assert [path.name for path in home.iterdir()] == ["..%2F..%2F..%2Fx%3A1"]


def test_no_home_is_no_reason_not_to_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    announce("t", ["127.0.0.1:1"])
    assert known_token("http://127.0.0.1:1") == ""
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    assert os.environ.get("HOME") is None
    known_token("http://127.0.0.1:1")
