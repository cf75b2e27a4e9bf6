"""What is shown while the demonstration runs: a live screen on a terminal, a line per step elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from understudy.demo.recording import Recent, Recording
from understudy.demo.report import AppFacts
from understudy.wire.records import Criticality

REFRESH_S = 0.25
NEWS_SHOWN = 8
STYLES = {"full-size": "green", "degraded": "yellow", "no answer": "bold red", "": "dim"}


def state_of(recent: Recent, full_size: str) -> str:
    if not recent.variant:
        return "no answer" if recent.requests else ""
    return "full-size" if recent.variant == full_size and not recent.degraded else "degraded"


class View:
    """Everything here comes from answers to the load generator's requests, but for the fault's name."""

    def __init__(self, console: Console, recording: Recording, apps: Mapping[str, AppFacts]) -> None:
        self._console = console
        self._recording = recording
        self._apps = apps
        self._title = "warming up"
        self._started_s = time.monotonic()
        self._news: deque[tuple[float, str]] = deque(maxlen=NEWS_SHOWN)
        self._variants = dict.fromkeys(apps, "")
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def begin(self, title: str) -> None:
        """A phase begins, or its fault is injected."""
        self._title = title
        self.tell(title)

    def tell(self, text: str) -> None:
        at_s = time.monotonic() - self._started_s
        self._news.append((at_s, text))
        if not self._live:
            self._console.print(f"{at_s:6.1f} s  {text}", markup=False, highlight=False, soft_wrap=True)

    def refresh(self) -> None:
        """Look at the newest answers; note changes of variant; draw."""
        now_s = time.monotonic()
        recents = {app: self._recording.recent(app, now_s) for app in self._apps}
        for app, recent in recents.items():
            before, self._variants[app] = self._variants[app], recent.variant or self._variants[app]
            if before and recent.variant and recent.variant != before:
                why = f" ({recent.degraded})" if recent.degraded else ""
                self._news.append((now_s - self._started_s, f"{app}: {before} → {recent.variant}{why}"))
        if self._live:
            self._live.update(self._screen(recents), refresh=True)

    def _screen(self, recents: Mapping[str, Recent]) -> Group:
        table = Table(box=box.SIMPLE_HEAD)
        for heading in ("app", "criticality", "served by", "state"):
            table.add_column(heading)
        for heading in ("requests/s", "p50 ms", "p99 ms", "failed"):
            table.add_column(heading, justify="right")
        for app, recent in recents.items():
            facts = self._apps[app]
            state, failed = state_of(recent, facts.full_size), self._recording.failed(app)
            critical = facts.criticality is Criticality.CRITICAL
            table.add_row(
                Text(app, style="bold" if critical else ""),
                facts.criticality.value,
                recent.variant,
                Text(f"{state}{': ' + recent.degraded if recent.degraded else ''}", style=STYLES[state]),
                str(recent.requests),
                _milliseconds(recent.p50_ms),
                _milliseconds(recent.p99_ms),
                Text(str(failed), style="bold red" if failed else ""),
            )
        elapsed_s = time.monotonic() - self._started_s
        head = Text.assemble((f"{elapsed_s:5.1f} s  ", "dim"), (self._title, "bold"))
        news = [Text(f"{at_s:7.1f} s  {text}", style="dim") for at_s, text in self._news]
        return Group(Text(), head, table, *news)


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
