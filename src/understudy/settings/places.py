"""Settings of what a place has to bear: its disks and its logs."""

from __future__ import annotations

from understudy.settings import Count, Fraction, Positive, Settings


class DiskSettings(Settings, frozen=True):
    """Of every disk that a role writes to."""

    free_fraction: Fraction = 0.1  # less than this and less than `free_mb` is free: it is filling
    free_mb: Positive = 2048.0
    check_interval_s: Positive = 5.0


class LogSettings(Settings, frozen=True):
    """Of the processes of `understudy up`, and of what models print."""

    bytes_max: Count = 10 * 1024 * 1024  # of one file; then it is set aside and begun anew
    file_count: Count = 3  # of one role, the one being written among them
    print_lines_per_s: Positive = 20.0  # of one replica, lasting; the rest of what it prints is counted only
    print_line_bytes_max: Count = 1000  # the rest of a line is left out
