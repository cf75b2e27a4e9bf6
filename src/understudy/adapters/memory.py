"""What a process costs its machine."""

from __future__ import annotations

import contextlib


def pss_mb(pid: int | str = "self") -> float:
    """Proportional set size in MiB: shared pages count as the share of each process that maps them.

    Takes about 1 ms, more with hundreds of mapped MB. Of one that is closed to us (`close_to_others`) it is
    what the process has of its own. Linux only; raises `OSError` elsewhere, and for one that has ended.
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) / 1024
    except PermissionError:
        return _status_mb(b"RssAnon:", pid)
    raise OSError(f"/proc/{pid}/smaps_rollup has no Pss line")


def reset_peak() -> float:
    """Forget the process's largest resident set so far; its resident set now, in MiB."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _status_mb(b"VmRSS:")


def peak_mb() -> float:
    """The largest resident set since `reset_peak`, or of the process's life where that isn't offered."""
    return _status_mb(b"VmHWM:")


def _status_mb(field: bytes, pid: int | str = "self") -> float:
    with open(f"/proc/{pid}/status", "rb") as file:
        return next((int(line.split()[1]) / 1024 for line in file if line.startswith(field)), 0.0)
