"""Tests on real processes, and a machine that others use.

One that fails while others used half of the processors or more is run again, twice at most. If it never
passes, that says nothing of the product: it is skipped with that reason, and in CI it has failed.
"""

from __future__ import annotations

import os
import time

import pytest
from _pytest.runner import runtestprotocol

from understudy.adapters.neighbours import BUSY_SHARE, Neighbours, too_busy

TRIES = 3


class BusyMachine:
    """A plugin for the tests in these `folders`."""

    def __init__(self, folders: tuple[str, ...], *, may_skip: bool) -> None:
        self._folders = folders
        self._may_skip = may_skip
        self._neighbours: Neighbours | None = None

    def pytest_sessionfinish(self) -> None:
        if self._neighbours is not None:
            self._neighbours.stop()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        if item.path.parent.name not in self._folders:
            return None
        if self._neighbours is None:
            self._neighbours = Neighbours()
            self._neighbours.start()
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports(item, nextitem, self._neighbours):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _reports(
        self, item: pytest.Item, nextitem: pytest.Item | None, neighbours: Neighbours
    ) -> list[pytest.TestReport]:
        for attempt in range(1, TRIES + 1):
            began_s = time.monotonic()
            reports = runtestprotocol(item, log=False, nextitem=nextitem)
            share = neighbours.share(began_s, time.monotonic())
            failed = [report for report in reports if report.failed]
            if not failed or share < BUSY_SHARE:
                return reports
            if attempt < TRIES:
                item.session._setupstate.teardown_exact(None)  # a cluster that it may have left broken
        for report in failed:
            report.sections.append(("machine", f"{too_busy(share)} (the last of {TRIES} tries)"))
            if self._may_skip:
                lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
                why = lines[-1].removeprefix("E").strip() if lines else "no words"
                report.outcome = "skipped"
                what = f"{too_busy(share)} (it failed {TRIES} times, the last time with: {why})"
                report.longrepr = (os.fspath(item.path), item.location[1], what)
        return reports
