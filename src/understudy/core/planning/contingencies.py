"""Who brings back what each failure silences, for given placements.

Failures don't happen together unless they are declared so, so each has all the spare room to itself. First
what is staged already stays, and the rest takes its best way back wherever there is most room. Where not all
of that fits, every app begins with nothing and the room goes, step by step, to whom it is worth most.

For "any-K" the room on a bin must do for whichever K nodes are lost together. For two, that is tried pair by
pair; for more, each way back is charged to one of the nodes whose loss it waits for, and the K largest
charges of a bin must fit at once: never too little.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from understudy.core.planning.choices import Choices
from understudy.core.planning.objective import RESTAGE, Problem, chain
from understudy.core.planning.room import ROUNDING, Room, pick

Held = tuple[int, int]  # (variant, bin)
Replicas = list[tuple[list[Held], Held | None]]  # by app: primaries, standby
Answer = tuple[int, int]  # (bin, way)
SILENT = -1
CROWDED = 4  # bins for each silenced app, below which room is used bin by bin


@dataclass(slots=True)
class Answers:
    found: dict[tuple[int, str], Answer] = field(default_factory=dict)  # by app and failure
    loss: float = 0.0  # of all failures, with what staging costs


def answer_failures(problem: Problem, choices: list[Choices], room: Room, replicas: Replicas) -> Answers:
    answering = _AnsweringAny if problem.any_of else _Answering
    return answering(problem, choices, room, replicas).run()


class _Answering:
    """One failure at a time."""

    def __init__(self, problem: Problem, choices: list[Choices], room: Room, replicas: Replicas) -> None:
        self._problem = problem
        self._choices = choices
        self._room = room
        self._answers = Answers()
        self._staged = self._read_staged()
        self._limited = bool(np.isfinite(room.cores).any())
        self._replicas = replicas
        self._silenced: list[list[int]] = [[] for _ in problem.scenarios]
        for a, (primaries, standby) in enumerate(replicas):
            if primaries:
                self._strike(a, [b for _, b in primaries], standby)

    def _strike(self, a: int, primaries: list[int], standby: Held | None) -> None:
        """Sort out which failures silence `a`, and charge those that a standby answers."""
        struck = self._room.scenarios_of(primaries[0])
        for s in struck:
            lost = self._room.lost[s]
            if len(primaries) > 1 and not all(lost[b] for b in primaries):
                continue
            if standby is None or lost[standby[1]]:
                self._silenced[s].append(a)
            else:
                names = len(self._problem.scenarios[s].names)
                self._answers.loss += self._choices[a].warm[standby[0]] * names

    def _read_staged(self) -> dict[tuple[int, str], Answer]:
        apps = {c.app.app: a for a, c in enumerate(self._choices)}
        bins = {(held.node, held.device): b for b, held in enumerate(self._problem.bins)}
        staged = {}
        for c in self._problem.staged:
            a, b = apps.get(c.app), bins.get((c.node, c.device))
            if a is None or b is None or self._choices[a].app.version != c.version:
                continue
            w = self._choices[a].way_index.get((c.first, c.variant))
            if w is not None and self._room.is_ready(b, *self._choices[a].way_keys[w]):
                staged[a, c.failure] = (b, w)
        return staged

    def run(self) -> Answers:
        for s, scenario in enumerate(self._problem.scenarios):
            if self._problem.any_of and len(scenario.lost) == 1:
                continue
            found = self._answer(s, self._silenced[s])
            for a in self._silenced[s]:
                for name in scenario.names:
                    self._settle(a, name, found.get(a))
        return self._answers

    def _settle(self, a: int, failure: str, answer: Answer | None) -> None:
        choices = self._choices[a]
        if answer is None:
            self._answers.loss += choices.silent
            return
        self._answers.found[a, failure] = answer
        self._answers.loss += choices.ways[answer[1]].loss
        if self._staged.get((a, failure)) != answer:
            self._answers.loss += RESTAGE

    def _answer(self, s: int, apps: list[int]) -> dict[int, Answer]:
        left = _Left(self._room, self._room.lost[s], limited=self._limited)
        name = self._problem.scenarios[s].names[0]
        found = self._still_staged(name, apps, left)
        if not found:
            return self._best_for_all(s, apps, left) or self._by_value(s, apps, left)
        self._improve(s, apps, found, left)
        if len(found) < len(apps):  # does it pay to stage everything anew?
            anew = self._by_value(s, apps, left)
            found = min(found, anew, key=lambda answers: self._price(name, apps, answers))
        return found

    def _still_staged(self, name: str, apps: list[int], left: _Left) -> dict[int, Answer]:
        found = {}
        for a in apps:
            staged = self._staged.get((a, name))
            if staged is not None and left.fits(staged[0], *self._needs(a, staged[1])):
                left.take(staged[0], *self._needs(a, staged[1]))
                found[a] = staged
        return found

    def _price(self, name: str, apps: list[int], answers: dict[int, Answer]) -> float:
        price = 0.0
        for a in apps:
            answer = answers.get(a)
            if answer is None:
                price += self._choices[a].silent
            else:
                price += self._choices[a].ways[answer[1]].loss
                price += RESTAGE * (self._staged.get((a, name)) != answer)
        return price

    def _best_for_all(self, s: int, apps: list[int], left: _Left) -> dict[int, Answer] | None:
        """The best way back for every app, each failure's elsewhere; None if not all of it fits."""
        found = {}
        start = s * len(self._room.node) // len(self._room.lost)
        for a in sorted(apps, key=lambda a: (-self._choices[a].ways[0].room_mb, a)):
            b = left.next(*self._needs(a, 0), start, self._ready(a, 0))
            if b < 0:
                return None
            start = b + 1
            left.take(b, *self._needs(a, 0))
            found[a] = (b, 0)
        return found

    def _by_value(self, s: int, apps: list[int], left: _Left) -> dict[int, Answer]:
        left.reset()
        found: dict[int, Answer] = {}
        self._improve(s, apps, found, left)
        return found

    def _improve(self, s: int, apps: list[int], found: dict[int, Answer], left: _Left) -> None:
        """Give the room that is left to those who gain most by MB, a step at a time.

        Where there are few apps for the bins, failures take turns over these: contingencies in one place
        would load one after the other, and fall together when the place is taken.
        """
        bins = len(self._room.node)
        start = s * bins // len(self._room.lost)
        crowded = CROWDED * len(apps) > bins
        queue: list[tuple[float, int, int]] = []
        failed: set[tuple[int, int]] = set()
        largest_mb = left.largest_mb()
        for a in apps:
            way = found[a][1] if a in found else SILENT
            ways = self._choices[a].ways
            if way == SILENT or (way > 0 and ways[way - 1].room_mb <= largest_mb + ways[way].room_mb):
                self._offer(a, way, queue)
        while queue:
            _, a, way = heapq.heappop(queue)
            held = found.get(a)
            if held is not None:
                left.give_back(held[0], *self._needs(a, held[1]))
            needs = self._needs(a, way)
            ready = self._ready(a, way)
            if held is not None and left.fits(held[0], *needs) and (ready is None or ready[held[0]]):
                b = held[0]
            else:
                b = left.tightest(*needs, ready) if crowded else left.next(*needs, start, ready)
                start = b + 1
            if b >= 0:
                left.take(b, *needs)
                found[a] = (b, way)
                self._offer(a, way, queue)
                continue
            if held is not None:
                left.take(held[0], *self._needs(a, held[1]))
            if self._problem.lacking:  # what is larger may be ready elsewhere
                failed.add((a, way))
                way = -1
            self._offer(a, held[1] if held is not None else SILENT, queue, above=way, without=failed)

    def _offer(
        self,
        a: int,
        way: int,
        queue: list[tuple[float, int, int]],
        *,
        above: int = -1,
        without: Collection[tuple[int, int]] = (),
    ) -> None:
        """Queue the step from `way` that gains most by MB, of those to ways `above` (smaller than) one."""
        choices = self._choices[a]
        loss, room_mb = choices.silent, 0.0
        if way != SILENT:
            loss, room_mb = choices.ways[way].loss, choices.ways[way].room_mb
        best = (0.0, a, SILENT)
        for w in range(above + 1, len(choices.ways) if way == SILENT else way):
            other = choices.ways[w]
            if other.loss < loss - 1e-9 and (a, w) not in without:
                best = min(best, (-(loss - other.loss) / max(other.room_mb - room_mb, 1e-9), a, w))
        if best[2] != SILENT:
            heapq.heappush(queue, best)

    def _ready(self, a: int, way: int) -> NDArray[np.bool_] | None:
        return self._room.ready(*self._choices[a].way_keys[way])

    def _needs(self, a: int, way: int) -> tuple[float, float]:
        chosen = self._choices[a].ways[way]
        return chosen.room_mb, chosen.busy


class _AnsweringAny(_Answering):
    """Whichever K nodes are lost, beside the other failures."""

    def run(self) -> Answers:
        super().run()
        found = self._chains(smallest=False)
        if found is None:
            found = self._chains(smallest=True)
        assert found is not None
        for a, (primaries, standby) in enumerate(self._replicas):
            if not primaries:
                continue
            self._settle_chain(a, primaries, standby, found.get(a, []))
        return self._answers

    def _nodes(self, a: int) -> list[int]:
        primaries, standby = self._replicas[a]
        held = [*primaries, standby] if standby is not None else primaries
        return list(dict.fromkeys(int(self._room.node[b]) for _, b in held))

    def _chains(self, *, smallest: bool) -> dict[int, list[Answer]] | None:
        """The ways back of each app, in order. None if not all have room for their best ones.

        With `smallest`, apps begin with the smallest way for each link, the most valuable first, and grow
        where there is room; what doesn't fit is missing.
        """
        any_of = self._problem.any_of
        charges = _Charges(self._room, any_of, limited=self._limited)
        found: dict[int, list[Answer]] = {
            a: []
            for a in sorted(range(len(self._choices)), key=lambda a: (-self._choices[a].silent, a))
            if self._replicas[a][0] and len(self._nodes(a)) <= any_of
        }
        for link in range(any_of):  # everybody's first way back before anybody's second
            for a, answers in found.items():
                if len(answers) < link or link > any_of - len(self._nodes(a)):
                    continue
                lost = self._lost_for(a, answers)
                way = len(self._choices[a].ways) - 1 if smallest else 0
                b, w = self._pick_link(a, link, lost, way, charges, keep_way=not smallest)
                if b >= 0:
                    charges.take(lost, b, *self._needs(a, w))
                    answers.append((b, w))
                elif not smallest:
                    return None
        if smallest:
            self._grow_chains(found, charges)
        return found

    def _lost_for(self, a: int, answers: list[Answer]) -> list[int]:
        """Nodes that have to be lost before the way back after `answers` acts."""
        return [*self._nodes(a), *(int(self._room.node[b]) for b, _ in answers)]

    def _pick_link(
        self, a: int, link: int, lost: list[int], way: int, charges: _Charges, *, keep_way: bool
    ) -> Answer:
        """Where the next way back acts, and which: what is staged for it already, if that still holds."""
        held = [self._problem.bins[b].node for b in self._bins(a)]
        staged = self._staged.get((a, chain(list(dict.fromkeys(held)), self._problem.any_of)[link]))
        if staged is not None and int(self._room.node[staged[0]]) not in lost:
            w = staged[1] if keep_way else way
            if charges.fits(staged[0], *self._needs(a, w)):
                return staged[0], w
        if not self._problem.lacking:
            return charges.pick(*self._needs(a, way), lost), way
        # The best way that is ready where there is room for it: what is smaller may be ready nowhere else.
        for w in sorted(range(len(self._choices[a].ways)), key=lambda w: (w != way, w)):
            b = charges.pick(*self._needs(a, w), lost, self._ready(a, w))
            if b >= 0:
                return b, w
        return -1, way

    def _bins(self, a: int) -> list[int]:
        primaries, standby = self._replicas[a]
        return [b for _, b in primaries] + ([standby[1]] if standby is not None else [])

    def _grow_chains(self, found: dict[int, list[Answer]], charges: _Charges) -> None:
        for a, answers in found.items():
            for link, (b, way) in enumerate(answers):
                lost = self._lost_for(a, answers[:link])
                for better in range(way):
                    more = [
                        new - old
                        for new, old in zip(self._needs(a, better), self._needs(a, way), strict=True)
                    ]
                    keys = self._choices[a].way_keys[better]
                    if charges.fits(b, *more) and self._room.is_ready(b, *keys):
                        charges.take(lost, b, *more)
                        answers[link] = (b, better)
                        break

    def _settle_chain(
        self, a: int, primaries: list[Held], standby: Held | None, answers: list[Answer]
    ) -> None:
        choices = self._choices[a]
        any_of = self._problem.any_of
        nodes = list(dict.fromkeys(self._problem.bins[b].node for b in self._bins(a)))
        names = chain(nodes, any_of)
        links = max(0, any_of - len(nodes) + 1)
        if len(nodes) == 1:  # its node's loss alone, and failures that take no more than that node
            for s in self._room.scenarios_of(primaries[0][1]):
                scenario = self._problem.scenarios[s]
                if len(scenario.lost) == 1:
                    for name in scenario.names:
                        self._settle(a, name, answers[0] if answers else None)
        for name, answer in zip(names[:links], answers, strict=False):
            if len(nodes) > 1 or name != names[0]:
                self._answers.found[a, name] = answer
                self._answers.loss += RESTAGE * (self._staged.get((a, name)) != answer)
        if len({self._problem.bins[b].node for _, b in primaries}) > any_of:
            return
        if links == 0:
            assert standby is not None
            self._answers.loss += choices.warm[standby[0]]
        elif len(answers) < links:
            self._answers.loss += choices.silent
        else:
            self._answers.loss += max(choices.ways[w].loss for _, w in answers)


class _Left:
    """Room in one failure."""

    def __init__(self, room: Room, lost: NDArray[np.bool_], *, limited: bool) -> None:
        self._room, self._lost, self._limited = room, lost, limited
        self.reset()

    def reset(self) -> None:
        self._mb = np.where(self._lost, -1.0, self._room.free_mb)
        self._busy = np.where(self._lost, -1.0, self._room.free_busy) if self._limited else None

    def largest_mb(self) -> float:
        return float(self._mb.max())

    def fits(self, b: int, mb: float, busy: float) -> bool:
        enough = self._mb[b] >= mb - ROUNDING
        return bool(enough and (self._busy is None or self._busy[b] >= busy - ROUNDING))

    def tightest(self, mb: float, busy: float, allowed: NDArray[np.bool_] | None = None) -> int:
        return pick(self._room, self._mb, self._busy, mb, busy, allowed, dense=True)

    def next(self, mb: float, busy: float, start: int, allowed: NDArray[np.bool_] | None = None) -> int:
        """The first bin from `start` on that fits, going round; -1 if none does."""
        fits = self._mb >= mb - ROUNDING
        if allowed is not None:
            fits &= allowed
        if self._busy is not None:
            fits &= self._busy >= busy - ROUNDING
        start %= len(fits)
        b = start + int(fits[start:].argmax())
        if not fits[b]:
            b = int(fits.argmax())
        return b if fits[b] else -1

    def take(self, b: int, mb: float, busy: float) -> None:
        self._mb[b] -= mb
        if self._busy is not None:
            self._busy[b] -= busy

    def give_back(self, b: int, mb: float, busy: float) -> None:
        self.take(b, -mb, -busy)


class _Charges:
    """Room on every bin that the worst loss of K nodes leaves."""

    def __init__(self, room: Room, any_of: int, *, limited: bool) -> None:
        self._room = room
        self._mb = [_Worst(any_of) for _ in room.node]
        self._busy = [_Worst(any_of) for _ in room.node]
        self._left_mb = room.free_mb.copy()
        self._left_busy = room.free_busy.copy() if limited else None

    def fits(self, b: int, mb: float, busy: float) -> bool:
        enough = self._left_mb[b] >= mb - ROUNDING
        return bool(enough and (self._left_busy is None or self._left_busy[b] >= busy - ROUNDING))

    def pick(self, mb: float, busy: float, lost: list[int], ready: NDArray[np.bool_] | None = None) -> int:
        allowed = np.ones(len(self._left_mb), dtype=bool) if ready is None else ready.copy()
        for node in lost:
            allowed[self._room.bins_of[node]] = False
        return pick(self._room, self._left_mb, self._left_busy, mb, busy, allowed, dense=False)

    def take(self, lost: list[int], b: int, mb: float, busy: float) -> None:
        self._left_mb[b] = self._room.free_mb[b] - self._mb[b].add(lost, mb)
        if self._left_busy is not None:
            self._left_busy[b] = self._room.free_busy[b] - self._busy[b].add(lost, busy)


class _Worst:
    """The most that losing K nodes asks of one bin, while needs are added."""

    def __init__(self, any_of: int) -> None:
        self._any_of = any_of
        self._worst = 0.0
        self._single: dict[int, float] = defaultdict(float)  # by the node that is lost
        self._pairs: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))

    def add(self, lost: list[int], need: float) -> float:
        """The most, with `need` when all of `lost` are lost."""
        single, node = self._single, lost[0]
        if len(lost) == self._any_of == 2:
            other = lost[1]
            self._pairs[node][other] += need
            self._pairs[other][node] += need
            together = single.get(node, 0.0) + single.get(other, 0.0) + self._pairs[node][other]
            self._worst = max(self._worst, together)
            return self._worst
        single[node] += need
        self._worst = max(self._worst, sum(heapq.nlargest(self._any_of, single.values())))
        for other, both in self._pairs[node].items() if node in self._pairs else ():
            self._worst = max(self._worst, single[node] + single.get(other, 0.0) + both)
        return self._worst
