"""What is left on every bin while a plan is made."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from understudy.core.planning.objective import Problem

ROUNDING = 1e-6


class Room:
    """Free memory and compute by bin, and which bins fail together. Bins by their index."""

    def __init__(self, problem: Problem) -> None:
        bins = problem.bins
        nodes = {name: n for n, name in enumerate(dict.fromkeys(held.node for held in bins))}
        sites = {name: n for n, name in enumerate(dict.fromkeys(held.site for held in bins))}
        self.node = np.array([nodes[held.node] for held in bins], dtype=np.int64)
        self.site = np.array([sites[held.site] for held in bins], dtype=np.int64)
        self.memory_mb = np.array([held.memory_mb for held in bins])
        self.cores = np.array([held.cores for held in bins])
        self.free_mb = self.memory_mb.copy()
        self.free_busy = self.cores.copy()
        self._limited = bool(np.isfinite(self.cores).any())
        self.bins_of: list[list[int]] = [[] for _ in nodes]  # by node
        for b, n in enumerate(self.node.tolist()):
            self.bins_of[n].append(b)
        self._nodes = nodes
        self.lost = [self._mask(scenario.lost) for scenario in problem.scenarios]
        self._scenarios: list[list[int]] = [[] for _ in bins]  # that a bin is lost in
        without: dict[str, list[int]] = {}  # by environment: bins of nodes where it isn't ready
        for node, key in problem.lacking:
            without.setdefault(key, []).extend(self.bins_of[nodes[node]] if node in nodes else ())
        self._ready = {key: self._all_but(found) for key, found in without.items() if found}
        for s, scenario in enumerate(problem.scenarios):
            for node in scenario.lost:
                for b in self.bins_of[nodes[node]]:
                    self._scenarios[b].append(s)

    def _mask(self, names: Iterable[str]) -> NDArray[np.bool_]:
        mask = np.zeros(len(self.node), dtype=bool)
        for name in names:
            mask[self.bins_of[self._nodes[name]]] = True
        return mask

    def _all_but(self, bins: list[int]) -> NDArray[np.bool_]:
        mask = np.ones(len(self.node), dtype=bool)
        mask[bins] = False
        return mask

    def ready(self, *keys: str) -> NDArray[np.bool_] | None:
        """Bins of nodes where all these environments are ready; None: all bins."""
        masks = [self._ready[key] for key in keys if key in self._ready] if self._ready else []
        return np.logical_and.reduce(masks) if masks else None

    def is_ready(self, b: int, *keys: str) -> bool:
        return not self._ready or all(self._ready[key][b] for key in keys if key in self._ready)

    def scenarios_of(self, b: int) -> list[int]:
        """In which bin `b` is lost."""
        return self._scenarios[b]

    def shared(self, bins: list[int]) -> NDArray[np.int64]:
        """By bin: in how many scenarios it is lost together with all of `bins`."""
        count = np.zeros(len(self.node), dtype=np.int64)
        both = set(self._scenarios[bins[0]]).intersection(*(self._scenarios[b] for b in bins[1:]))
        for s in both:
            count += self.lost[s]
        return count

    def fits(self, b: int, mb: float, busy: float) -> bool:
        return bool(self.free_mb[b] >= mb - ROUNDING and self.free_busy[b] >= busy - ROUNDING)

    def take(self, b: int, mb: float, busy: float) -> None:
        self.free_mb[b] -= mb
        self.free_busy[b] -= busy

    def pick(self, mb: float, busy: float, allowed: NDArray[np.bool_] | None, *, dense: bool) -> int:
        """A bin that fits, -1 if none does: the emptiest for its size, or the fullest if `dense`."""
        return pick(
            self, self.free_mb, self.free_busy if self._limited else None, mb, busy, allowed, dense=dense
        )


def pick(
    room: Room,
    free_mb: NDArray[np.float64],
    free_busy: NDArray[np.float64] | None,
    mb: float,
    busy: float,
    allowed: NDArray[np.bool_] | None,
    *,
    dense: bool,
) -> int:
    fits = free_mb >= mb - ROUNDING
    if free_busy is not None:
        fits &= free_busy >= busy - ROUNDING
    if allowed is not None:
        fits &= allowed
    if dense:
        b = int(np.where(fits, free_mb, math.inf).argmin())
    else:
        share = free_mb / room.memory_mb
        if free_busy is not None:
            share = np.minimum(share, free_busy / np.where(np.isfinite(room.cores), room.cores, 1.0))
        b = int(np.where(fits, share, -1.0).argmax())
    return b if fits[b] else -1
