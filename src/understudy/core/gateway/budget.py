"""A budget for extra work: retries and hedges may be a fraction of recent requests, never a storm."""

from __future__ import annotations

WINDOW_S = 10.0


class Budget:
    """At most `fraction` of the requests of the last one to two windows, but always `least` per window."""

    __slots__ = ("_fraction", "_least", "_previous_requests", "_requests", "_rotate_at", "_spent")

    def __init__(self, fraction: float, least: int, now: float) -> None:
        self._fraction = fraction
        self._least = least
        self._requests = 0
        self._previous_requests = 0
        self._spent = 0
        self._rotate_at = now + WINDOW_S

    def deposit(self, requests: int = 1) -> None:
        self._requests += requests

    def withdraw(self, now: float) -> bool:
        """Spend one; False if the budget is exhausted."""
        if now >= self._rotate_at:
            self._previous_requests, self._requests = self._requests, 0
            self._spent = 0
            self._rotate_at = now + WINDOW_S
        allowed = max(self._least, self._fraction * (self._requests + self._previous_requests))
        if self._spent >= allowed:
            return False
        self._spent += 1
        return True
