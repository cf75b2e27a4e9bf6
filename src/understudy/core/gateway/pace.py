"""How fast one replica answers, kept up to date by its answers for next to nothing.

Medians by frugal streaming (see `outliers`): a step up for a larger value, a step down for a smaller one.
They settle within some ten samples of a change by an order of magnitude, and then stay within a step or two.
"""

from __future__ import annotations

SAMPLE_MASK = 3  # the dispatcher samples the answers on every fourth stream
UP, DOWN = 1.3, 1 / 1.3
SAMPLES_MIN = 10  # before a median is believed
LEARN_SAMPLES = 25  # before its own history begins


class Pace:
    """`latency_s`: sent -> answered, seen from here. `batch_us`, `row_us`: inference in the worker."""

    __slots__ = (
        "batch_us",
        "latency_s",
        "learnt_at",
        "readmitted_at",
        "row_us",
        "samples",
        "usual_batch_us",
        "usual_row_us",
    )

    def __init__(self) -> None:
        self.readmitted_at: float | None = None
        self.begin_anew(None)

    def begin_anew(self, readmitted_at: float | None) -> None:
        """Forget everything: it was re-admitted, and may have changed."""
        self.samples = 0
        self.latency_s = self.batch_us = self.row_us = 0.0
        self.usual_batch_us = self.usual_row_us = 0.0  # 0: not known yet
        self.learnt_at = LEARN_SAMPLES  # samples at which the history is brought up to date next
        self.readmitted_at = readmitted_at

    def sampled(self, latency_s: float, infer_us: int, rows: int) -> None:
        self.samples += 1
        row_us = infer_us / (rows or 1)
        if self.samples == 1:
            self.latency_s, self.batch_us, self.row_us = latency_s, infer_us, row_us
        self.latency_s *= UP if latency_s > self.latency_s else DOWN
        self.batch_us *= UP if infer_us > self.batch_us else DOWN
        self.row_us *= UP if row_us > self.row_us else DOWN
