"""How much an app may have in flight: what its pools can take in time, and its share of the gateway."""

from __future__ import annotations

from understudy.core.gateway.admission import Concurrency, target_latency_s
from understudy.core.gateway.brownout import Brownout
from understudy.core.gateway.traffic import AnswerSums
from understudy.settings.gateway import AdmissionSettings
from understudy.wire.records import AppVersion


class Allowance:
    """Of one app. `pressure.Gate` sets `limit`, `share` and what is admitted."""

    def __init__(self, settings: AdmissionSettings, now: float) -> None:
        self._inflight_min = settings.inflight_min
        self.limit: float = settings.inflight_max  # ask `pressure.Gate` from here on
        self.share: float = settings.inflight_max  # of what the whole gateway may have in flight
        self.admitted_fraction = 1.0
        self.admitted_credit = 0.0  # what rounding has left over of it
        self.spacing_s = 0.0  # a request in flight makes the next one wait for so long
        self.concurrency = Concurrency(settings, now)
        self.brownout = Brownout(settings, now)
        self._infer_seen = (0, 0)  # requests and infer_us of `Answered`
        self._infer_s = 0.0  # of a batch, lately

    def observe(self, inflight: int, overflowed: int, elapsed_s: float) -> None:
        """On each tick: what was in flight for the last `elapsed_s`, and how much of it in a brown-out."""
        self.concurrency.observe(inflight - overflowed, elapsed_s)
        self.brownout.concurrency.observe(overflowed, elapsed_s)

    def retune(self, spec: AppVersion, answered: AnswerSums, best: int, smaller: int, now: float) -> bool:
        """Bring the limits up to date, some times a second. True if a brown-out began or ended.

        `best`, `smaller`: how many replicas the two pools have.
        """
        brownout, least = self.brownout, self._inflight_min
        answers = answered.requests - brownout.answers
        overflowed = self.concurrency.refused > 0
        if not best:
            self.concurrency.skip(answers, now)
        else:
            infer_s, spacing_s = self._measure_batches(answered, spec.batching.rows_max * best)
            target_s = target_latency_s(spec.objective_s, spec.deadline_ms / 1000, infer_s)
            self.concurrency.retune(answers, target_s, least * best, now)
            self.concurrency.spacing_s = max(self.concurrency.spacing_s, spacing_s)
            if brownout.on:
                brownout.concurrency.retune(brownout.answers, target_s, least * max(smaller, 1), now)
        return brownout.retune(overflowed, spec.brownout and smaller > 0, now)

    def _measure_batches(self, answered: AnswerSums, rows_max: int) -> tuple[float, float]:
        """How long one ran of late, and how far apart answers are at least, each batch being full, in s."""
        requests, infer_us = self._infer_seen
        before_s = self._infer_s
        if answered.requests > requests:
            self._infer_s = (answered.infer_us - infer_us) / (answered.requests - requests) / 1e6
            self._infer_seen = answered.requests, answered.infer_us
        # The shorter of two, so that one stall doesn't count.
        return self._infer_s, min(before_s, self._infer_s) / rows_max
