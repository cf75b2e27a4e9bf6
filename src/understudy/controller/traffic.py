"""What the gateways told about the requests they served. In memory only; gone with the controller."""

from __future__ import annotations

from dataclasses import dataclass, field

from understudy.wire.messages import AppStats, GatewayStats


@dataclass(slots=True)
class AppTraffic:
    """Sums since the controller started; latencies of the newest report with requests, over all gateways."""

    requests: int = 0
    failed: int = 0
    degraded: int = 0
    p50_ms: float | None = None  # mean over gateways, weighted by their requests
    p99_ms: float | None = None  # the slowest gateway's


@dataclass(slots=True)
class GatewayView:
    name: str
    connected: bool = False
    stats: GatewayStats | None = None
    newest: dict[str, AppStats] = field(default_factory=dict)  # by app, reports with requests only


class Traffic:
    def __init__(self) -> None:
        self.gateways: dict[str, GatewayView] = {}
        self._apps: dict[str, AppTraffic] = {}

    def connected(self, gateway: str) -> None:
        self.gateways.setdefault(gateway, GatewayView(gateway)).connected = True

    def disconnected(self, gateway: str) -> None:
        view = self.gateways[gateway]
        view.connected = False
        view.newest.clear()

    def reported(self, gateway: str, stats: GatewayStats) -> None:
        view = self.gateways[gateway]
        view.stats = stats
        for name, app in stats.apps.items():
            if not app.requests:
                continue
            view.newest[name] = app
            total = self._apps.setdefault(name, AppTraffic())
            total.requests += app.requests
            total.failed += app.failed
            total.degraded += app.degraded
            reports = [v.newest[name] for v in self.gateways.values() if name in v.newest]
            requests = sum(report.requests for report in reports)
            total.p50_ms = sum(report.p50_ms * report.requests for report in reports) / requests
            total.p99_ms = max(report.p99_ms for report in reports)

    def app(self, name: str) -> AppTraffic:
        return self._apps.get(name, AppTraffic())

    def failing(self, name: str) -> str:
        """What the users of an app meet lately, by a gateway that sees it; empty if all is well."""
        reports = [v.stats.apps.get(name) for v in self.gateways.values() if v.connected and v.stats]
        return next((report.failing for report in reports if report is not None and report.failing), "")

    @property
    def served(self) -> bool:
        """Is there a gateway at all that clients could ask?"""
        return any(view.connected for view in self.gateways.values())

    def forget(self, name: str) -> None:
        """The app was removed."""
        self._apps.pop(name, None)
