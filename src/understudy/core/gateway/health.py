"""Health is what users get: the share of an app's requests that failed lately, and the last few of those.

Counted whatever the fault, so that one client's bad data is seen by an operator although it changes nobody
else's answers. Not counted: what the caller did wrong (4xx), a deadline of the caller's own that was shorter
than the app's, and what was refused because there was too much of it; the latter have counters of their own.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from understudy.settings.gateway import HealthSettings
from understudy.wire.errors import Code, Origin, UnderstudyError

if TYPE_CHECKING:
    from understudy.core.gateway.rotation import App, Request

OVERLOAD = frozenset({Code.SHED, Code.RATE_LIMITED, Code.BUSY})


@dataclass(frozen=True, slots=True)
class FailedRequest:
    """A request that got an error of ours. `at` is monotonic, in s."""

    at: float
    request_id: str
    client: str
    code: Code
    message: str
    version: int
    variant: str  # of the replica that failed it last; empty if none had it
    node: str
    replica: str
    traceback: str  # of the model's code


class UserHealth:
    """Of one app at one gateway."""

    def __init__(self, settings: HealthSettings, now: float) -> None:
        self._settings = settings
        self.failures: deque[FailedRequest] = deque(maxlen=settings.failures_max)
        self.failing = ""  # what users meet, as a phrase; empty while all is well
        self._untold: list[FailedRequest] = []
        self._told: dict[Code, float] = {}
        self._asked = (0, 0)  # of all requests, at the beginning of the former half window and of this one
        self._failed = [0, 0]  # in the former half window and in this one
        self._rotate_at = now + settings.window_s / 2

    @property
    def unfit(self) -> bool:
        """It fails so many that it shall not be ready, where that is the policy."""
        return bool(self.failing) and self._settings.readiness == "users"

    def note(self, request: Request, error: UnderstudyError, now: float) -> None:
        """It ended in `error`."""
        stats = request.app.traffic.stats
        if _is_callers(request, error):
            stats.rejected += 1
            return
        stats.failed += 1
        if error.code in OVERLOAD:
            return
        self._failed[1] += 1
        app = request.app
        replica = app.replicas.get(request.tried[-1]) if request.tried else None
        failure = FailedRequest(
            now,
            request.id,
            request.client,
            error.code,
            error.message,
            replica.version if replica else app.spec.version,
            replica.variant if replica else "",
            replica.node if replica else "",
            replica.id if replica else "",
            error.traceback,
        )
        self.failures.append(failure)
        if now - self._told.get(error.code, -self._settings.event_interval_s) >= (
            self._settings.event_interval_s
        ):
            self._told[error.code] = now
            self._untold.append(failure)

    def news(self) -> list[FailedRequest]:
        """Failures to tell of, at most one per code and `event_interval_s`."""
        untold, self._untold = self._untold, []
        return untold

    def judge(self, app: App, now: float) -> str:
        """Look again, some times a second: the event if that changed, else nothing."""
        asked = app.traffic.requests
        settings = self._settings
        if now >= self._rotate_at:
            self._rotate_at = now + settings.window_s / 2
            self._asked = (self._asked[1], asked)
            self._failed = [self._failed[1], 0]
        failed, of = sum(self._failed), asked - self._asked[0]
        share = failed / of if of else 0.0
        was = bool(self.failing)
        # It takes half as much to stay so: no flapping around the bound.
        if failed >= settings.failures_min and share >= settings.failing_fraction / (2 if was else 1):
            newest = self.failures[-1]
            what = f"{newest.code}: {newest.message}"
            self.failing = f"{failed} of {of} requests failed in the last {settings.window_s:g} s: {what}"
        else:
            self.failing = ""
        if was == bool(self.failing):
            return ""
        return "app.recovered" if was else "app.failing"


def _is_callers(request: Request, error: UnderstudyError) -> bool:
    if error.code is Code.TIMEOUT:
        return request.deadline - request.arrived < request.app.spec.deadline_ms / 1000 - 1e-6
    return error.origin is Origin.CALLER and error.code is not Code.POISON
