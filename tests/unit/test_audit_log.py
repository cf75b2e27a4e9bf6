"""The audit log: every action, some refusals with the count of the rest, in bounded files."""

from __future__ import annotations

from pathlib import Path

from understudy.adapters.audit import FILE_NAME, REFUSALS, AuditLog
from understudy.core.gateway.clients import ClientBuckets
from understudy.settings.places import LogSettings

ROOMY = LogSettings()


def test_what_was_done_is_read_back_in_order(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, ROOMY)
    for number in range(5):
        log.acted("operator", "127.0.0.1:1", f"DELETE /v1/apps/a{number}", 200)
    log.refused("", "127.0.0.1:2", "GET /v1/status", 401, "no token")
    assert [r.action for r in log.newest(2)] == ["DELETE /v1/apps/a4", "GET /v1/status"]
    assert len(AuditLog(tmp_path, ROOMY).newest(100)) == 6, "it survives its process"
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_a_flood_of_refusals_is_counted_and_pushes_no_action_out(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, LogSettings(bytes_max=100_000, file_count=3))
    log.acted("operator", "127.0.0.1:1", "POST /v1/nodes/n1/drain", 200)
    for _ in range(100_000):
        log.refused("", "127.0.0.1:2", "GET /" + "x" * 10_000, 401, "y" * 10_000)
    kept = log.newest(1000)
    assert kept[0].action == "POST /v1/nodes/n1/drain"
    assert REFUSALS.burst <= len(kept) - 1 < 10 * REFUSALS.burst
    assert all(len(r.action) < 400 and len(r.why) < 400 for r in kept)
    log._refusals = ClientBuckets(REFUSALS, clients_max=1)  # as after a pause
    log.refused("", "127.0.0.1:2", "GET /", 401, "z")
    (newest,) = log.newest(1)
    assert newest.left_out + sum(r.left_out for r in kept) + len(kept) == 100_001


def test_old_lines_go_and_files_stay_few(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, LogSettings(bytes_max=1000, file_count=3))
    for number in range(500):
        log.acted("operator", "127.0.0.1:1", f"DELETE /v1/apps/a{number}", 200)
        assert log.newest(1)[0].action.endswith(f"a{number}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE_NAME, f"{FILE_NAME}.1", f"{FILE_NAME}.2"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    numbers = [int(r.action.rpartition("a")[2]) for r in log.newest(1000)]
    assert numbers == list(range(numbers[0], 500))


def test_one_file_is_begun_anew(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, LogSettings(bytes_max=1000, file_count=1))
    for number in range(50):
        log.acted("operator", "127.0.0.1:1", f"DELETE /v1/apps/a{number}", 200)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_a_disk_that_takes_nothing_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    log = AuditLog(tmp_path / "file", ROOMY)
    log.acted("operator", "127.0.0.1:1", "DELETE /v1/apps/a", 200)
    assert log.newest(10) == []


def test_damaged_lines_are_passed_over(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, ROOMY)
    log.acted("operator", "127.0.0.1:1", "DELETE /v1/apps/a", 200)
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write(b"\xff half a li\n{}\n")
    log.acted("operator", "127.0.0.1:1", "DELETE /v1/apps/b", 200)
    assert [r.action[-1] for r in log.newest(10)] == ["a", "b"]
