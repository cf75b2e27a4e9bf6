"""A budget for extra work: retries and hedges may be a fraction of recent requests, never a storm."""

from __future__ import annotations

WINDOW_S = 10.0


class Budget:
    """At most `fraction` of the requests of the last one to two windows, but always `least` per window.

    What was spent is counted over the same two windows.
    """

    __slots__ = (
        "_fraction", "_least", "_requests", "_requests_before", "_rotate_at", "_spent", "_spent_before",
    )  # fmt: skip

    def __init__(self, fraction: float, least: int, now: float) -> None:
        self._fraction = fraction
        self._least = least
        self._requests = self._requests_before = 0
        self._spent = self._spent_before = 0
        self._rotate_at = now + WINDOW_S

    def deposit(self, requests: int, now: float) -> None:
        self._rotate(now)
        self._requests += requests

    def withdraw(self, now: float) -> bool:
        """Spend one; False if the budget is exhausted."""
        self._rotate(now)
        allowed = self._fraction * (self._requests + self._requests_before)
        if self._spent >= self._least and self._spent + self._spent_before >= allowed:
            return False
        self._spent += 1
        return True

    def _rotate(self, now: float) -> None:
        if now < self._rotate_at:
            return
        both = now >= self._rotate_at + WINDOW_S  # nothing happened for so long that both are over
        self._requests_before, self._requests = 0 if both else self._requests, 0
        self._spent_before, self._spent = 0 if both else self._spent, 0
        self._rotate_at = now + WINDOW_S
