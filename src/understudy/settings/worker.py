"""Settings of a worker."""

from __future__ import annotations

from understudy.settings import Count, Fraction, Positive, Settings


class WorkerTuning(Settings, frozen=True):
    queue_rows_max: Count = 256  # beyond it: BUSY at once
    frame_bytes_max: Count = 72 * 1024 * 1024
    orphan_timeout_s: Positive = 60.0  # without an agent and without a request: exit
    threads: Count = 1  # of one inference
    recheck_share: Fraction = 0.01  # of the time at work, for computing batched answers again, alone
    output_bytes_max: Count = 16 * 1024 * 1024  # printed while no agent reads it; beyond it, it is lost
