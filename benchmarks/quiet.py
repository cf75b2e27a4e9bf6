"""Measuring on a machine that others use too: wait until it is quiet, and know when it wasn't."""

from __future__ import annotations

import time

from rich.console import Console

from understudy.adapters.neighbours import Neighbours

QUIET_SHARE = 0.1  # of the processors; below it others change little
QUIET_S = 2.0  # of quiet before a measurement
WAIT_S_MAX = 120.0


class Quiet:
    """Counts what others use while something is measured."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._neighbours = Neighbours()
        self._neighbours.start()
        self._since_s = time.monotonic()
        self.disturbed: dict[str, float] = {}  # what was measured -> the largest share of others meanwhile

    def wait(self) -> None:
        """Until others have been quiet for `QUIET_S`, or for as long as it is worth."""
        deadline_s = time.monotonic() + WAIT_S_MAX
        while (share := self._share_in_s(QUIET_S)) >= QUIET_SHARE:
            if time.monotonic() > deadline_s:
                self._console.print(f"not quiet: others use {share:.0%} of this machine", highlight=False)
                break
        self._since_s = time.monotonic()

    def note(self, what: str) -> bool:
        """Whether `what`, measured since `wait`, was disturbed."""
        share = self._neighbours.share(self._since_s, time.monotonic())
        if share < QUIET_SHARE:
            return False
        self._console.print(f"disturbed: {what}: others used {share:.0%}", highlight=False)
        self.disturbed[what] = round(max(share, self.disturbed.get(what, 0.0)), 3)
        return True

    def stop(self) -> None:
        self._neighbours.stop()

    def _share_in_s(self, seconds: float) -> float:
        began_s = time.monotonic()
        time.sleep(seconds)
        return self._neighbours.share(began_s, time.monotonic())
