"""How many requests of one app may be in flight: a limit that follows measured latency.

The algorithm is a gradient limit, as in Netflix's concurrency-limits (`GradientLimit`) and Envoy's adaptive
concurrency filter: limit <- limit * wanted latency / measured latency. Two things differ, both because of
batching, which makes latency rise with load while throughput rises too:

- The wanted latency is the app's objective (as in CoDel's target, RFC 8289, 4.4), not the least latency seen.
  A minimum would have to be probed for by starving the app now and then, and any batch looks slow beside it.
- Latency is measured as W = L / X (Little's law: mean in flight / throughput), so that what counts is how
  fast a full queue drains, wherever it is. With L at the limit, limit * target / W is X * target.

The limit follows X * target in windows in which it was binding, or in which latency was beyond the target as
in the window before (one stall is no overload); in others it opens. It at most halves or doubles per window,
so a tenfold change of the model is followed in four.

Apart from the limit, nobody is let in to miss a deadline: see `spacing_s`.
"""

from __future__ import annotations

from understudy.settings.gateway import AdmissionSettings

ANSWERS_MIN = 16  # in a window; fewer say little
WINDOW_S_MAX = 1.0  # a slow model's window ends here, with one answer at least
TARGET_FRACTION = 0.7  # of the objective, for the mean; what is left is for the slowest percent
SERVICES_WANTED = 2.5  # a request waits for the batch that runs, then runs: a target below that idles
DEADLINE_FRACTION = 0.8  # of a deadline may be planned to be spent
PROBE_FACTOR = 0.9  # with more in flight, a pool that batches may be faster than it is now
BUSY_FACTOR = 0.9  # of what was in flight when a replica said BUSY


def target_latency_s(objective_s: float, deadline_s: float, infer_s: float) -> float:
    """The mean latency to aim for. `infer_s`: how long one batch runs now."""
    return max(TARGET_FRACTION * objective_s, min(SERVICES_WANTED * infer_s, deadline_s))


class Concurrency:
    """Limit of one pool of replicas. Times in seconds, monotonic."""

    __slots__ = (
        "_answers", "_area_s", "_began", "_limit_max", "_slow_spacing_s", "busy", "limit", "overloaded",
        "refused", "spacing_s",
    )  # fmt: skip

    def __init__(self, settings: AdmissionSettings, now: float) -> None:
        self._limit_max = settings.inflight_max
        self.limit = settings.inflight_max  # lets in too much until it has seen something
        self.spacing_s = 0.0  # between two answers while the pool is busy; 0: never seen busy
        self.overloaded = False  # the last window was refusing, or too slow like the one before it
        self.refused = 0  # in this window, because of `limit` or `spacing_s`
        self.busy = 0  # BUSY answers in this window
        self._slow_spacing_s = 0.0  # of the last window if it was too slow
        self._restart(0, now)

    def _restart(self, answers: int, now: float) -> None:
        self._began = now
        self._answers = answers
        self._area_s = 0.0
        self.refused = self.busy = 0

    def observe(self, inflight: int, elapsed_s: float) -> None:
        """`inflight` requests were there for the last `elapsed_s`. Called on each tick."""
        self._area_s += inflight * elapsed_s

    def skip(self, answers: int, now: float) -> None:
        """Forget this window: no replica could answer, so it says nothing of their pace."""
        self.overloaded = False
        self._slow_spacing_s = 0.0
        self._restart(answers, now)

    def retune(self, answers: int, target_s: float, limit_min: int, now: float) -> None:
        """End the window if it holds enough. `answers`: given by the pool since ever."""
        window_s, answered = now - self._began, answers - self._answers
        if answered < ANSWERS_MIN and (window_s < WINDOW_S_MAX or not answered):
            self.overloaded = self.overloaded or self.refused > 0
            return
        inflight, spacing_s = self._area_s / window_s, window_s / answered
        slow = inflight * spacing_s > target_s
        lasting = slow and self._slow_spacing_s > 0.0
        self.overloaded = lasting or self.refused > 0 or self.busy > 0
        if self.overloaded:
            wanted = min(target_s / spacing_s, BUSY_FACTOR * inflight if self.busy else float("inf"))
            least = min(self.limit, inflight) / 2 if slow else self.limit / 2
            wanted = min(max(wanted, least), self.limit * 2)
            self.limit = round(min(max(wanted, limit_min), self._limit_max))
        elif not slow:
            # A burst is welcome again, as in CoDel: it is the queue that stays which does harm.
            self.limit = min(self.limit * 2, self._limit_max)
        self._learn_spacing(spacing_s, slow, lasting)
        self._restart(answers, now)

    def _learn_spacing(self, spacing_s: float, slow: bool, lasting: bool) -> None:
        if lasting:
            self.spacing_s = min(spacing_s, self._slow_spacing_s)  # the shorter: one of them may be a stall
        elif self.refused and not slow:
            self.spacing_s = PROBE_FACTOR * spacing_s
        elif not slow:
            self.spacing_s = min(self.spacing_s, spacing_s)  # not busy all the time: the true one is shorter
        self._slow_spacing_s = spacing_s if slow else 0.0

    def wait_s(self, inflight: int) -> float:
        """How long a request would take if it came now, by the pace of late, with a margin."""
        return (inflight + 1) * self.spacing_s / DEADLINE_FRACTION
