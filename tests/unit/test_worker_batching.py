"""The queue and the choice of batches, against a naive model of the same promises."""

from __future__ import annotations

from collections.abc import Hashable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from understudy.core.batching import OUTLIER_FACTOR, STALL_BATCHES, TRIAL_BATCHES, Batcher, Durations


def batcher(rows_max: int = 4, wait_s: float = 0.0, queue_rows_max: int = 100) -> Batcher[str]:
    return Batcher(rows_max, wait_s, queue_rows_max)


def filled(queue: Batcher[str], *items: str, key: Hashable = (), now: float = 0.0) -> Batcher[str]:
    for item in items:
        assert queue.add(item, 1, key, now)
    return queue


def test_without_a_wait_whatever_is_there_leaves_at_once() -> None:
    queue = filled(batcher(), "a", "b")
    assert queue.take(0.0) == ["a", "b"]
    assert queue.take(0.0) == []
    assert queue.wake_s() is None


def test_a_batch_has_rows_max_rows_at_most() -> None:
    queue = batcher(rows_max=4)
    for item, rows in [("a", 2), ("b", 1), ("c", 2), ("large", 9), ("d", 1)]:
        assert queue.add(item, rows, (), 0.0)
    assert [queue.take(0.0) for _ in range(4)] == [["a", "b"], ["c"], ["large"], ["d"]]
    assert queue.rows == 0


def test_a_batch_waits_for_company_and_no_longer() -> None:
    queue = filled(batcher(rows_max=3, wait_s=0.01), "a", now=5.0)
    assert queue.take(5.005) == []
    assert queue.wake_s() == 5.01
    filled(queue, "b", now=5.005)
    assert queue.take(5.011) == ["a", "b"]


def test_a_full_batch_does_not_wait() -> None:
    queue = filled(batcher(rows_max=2, wait_s=10.0), "a", "b", "c")
    assert queue.wake_s() == 0.0
    assert queue.take(0.0) == ["a", "b"]
    assert queue.take(0.0) == []


def test_a_full_batch_does_not_wait_for_an_older_key() -> None:
    queue = batcher(rows_max=2, wait_s=10.0)
    filled(queue, "old", key=1, now=0.0)
    filled(queue, "a", "b", key=2, now=1.0)
    assert queue.take(1.0) == ["a", "b"]
    assert queue.take(1.0) == []
    assert queue.take(10.0) == ["old"]


def test_keys_are_served_in_the_order_of_their_oldest_items() -> None:
    queue = batcher(rows_max=2)
    for item, key in [("a1", "a"), ("b1", "b"), ("a2", "a"), ("a3", "a"), ("b2", "b")]:
        queue.add(item, 1, key, 0.0)
    assert [queue.take(0.0) for _ in range(3)] == [["a1", "a2"], ["b1", "b2"], ["a3"]]


def test_the_queue_is_bounded_but_takes_one_large_item_when_empty() -> None:
    queue = batcher(queue_rows_max=3)
    assert queue.add("large", 50, (), 0.0)
    assert not queue.add("small", 1, (), 0.0)
    queue.take(0.0)
    filled(queue, "a", "b", "c")
    assert queue.is_full
    assert not queue.add("d", 1, (), 0.0)
    queue.add_beyond_bound("probe", 1, (), 0.0)
    assert queue.take(0.0) == ["a", "b", "c", "probe"]


class BatcherMachine(RuleBasedStateMachine):
    """Items are numbers in order of arrival. A plain list of (item, rows, key, added) is the model."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = Batcher[int](rows_max=5, wait_s=2.0, queue_rows_max=20)
        self.model: list[tuple[int, int, int, float]] = []
        self.now = 0.0
        self.count = 0

    @rule(rows=st.integers(1, 8), key=st.integers(0, 2))
    def add(self, rows: int, key: int) -> None:
        held = sum(entry[1] for entry in self.model)
        accepted = self.queue.add(self.count, rows, key, self.now)
        assert accepted == (held == 0 or held + rows <= 20)
        if accepted:
            self.model.append((self.count, rows, key, self.now))
        self.count += 1

    @rule(seconds=st.floats(0.0, 3.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(divisor=st.integers(2, 4))
    def remove(self, divisor: int) -> None:
        removed = self.queue.remove(lambda item: item % divisor == 0)
        assert sorted(removed) == [entry[0] for entry in self.model if entry[0] % divisor == 0]
        self.model = [entry for entry in self.model if entry[0] % divisor]

    @rule()
    def take(self) -> None:
        batch = self.queue.take(self.now)
        due = [entry for entry in self.model if self._is_due(entry[2])]
        assert bool(batch) == bool(due)
        if not batch:
            return
        taken = [entry for entry in self.model if entry[0] in batch]
        assert taken[0] == due[0], "the oldest item that is due leaves first"
        assert [entry[0] for entry in taken] == batch, "in order of arrival"
        assert len({entry[2] for entry in taken}) == 1
        assert len(batch) == 1 or sum(entry[1] for entry in taken) <= 5
        lane = [entry for entry in self.model if entry[2] == taken[0][2]]
        assert lane[: len(taken)] == taken, "nothing of the same key was overtaken"
        self.model = [entry for entry in self.model if entry not in taken]

    def _is_due(self, key: int) -> bool:
        lane = [entry for entry in self.model if entry[2] == key]
        return sum(entry[1] for entry in lane) >= 5 or self.now - lane[0][3] >= 2.0

    @invariant()
    def counts_rows(self) -> None:
        assert self.queue.rows == sum(entry[1] for entry in self.model)
        assert (self.queue.wake_s() is None) == (not self.model)


TestBatcher = BatcherMachine.TestCase


# What a hop costs at work is 100 us here; batches up to 200 us are tried inline.
HOP_S = 12.5e-6


def observed(*durations: tuple[int, float]) -> Durations:
    estimate = Durations(HOP_S)
    for rows, duration_s in durations:
        estimate.observe(rows, duration_s, inline=True)
    return estimate


def test_short_batches_run_inline_and_long_ones_in_the_thread() -> None:
    assert Durations(HOP_S).run_inline(1), "nothing is known: the first one is measured"
    assert observed((1, 10e-6)).run_inline(1)
    assert not observed((1, 10e-3)).run_inline(1)
    assert not observed((1, 50e-6)).run_inline(16), "assumed to grow with the rows"
    assert observed((1, 50e-6), (16, 55e-6)).run_inline(16), "measured not to"
    durations = observed((16, 55e-6))
    assert durations.estimate_s(17) == durations.estimate_s(31) == durations.estimate_s(1) == 55e-6


def test_a_model_whose_inputs_decide_how_long_it_takes_leaves_the_loop() -> None:
    durations = observed((1, 10e-6), (1, 1.0), (1, 10e-6), (1, 2.0), (1, 10e-6))
    assert not any(durations.run_inline(1) for _ in range(STALL_BATCHES))
    assert durations.run_inline(1), "and may try again, once in a while"


def test_one_stall_does_not_flip_the_choice_but_a_slow_model_does() -> None:
    durations = observed((1, 10e-6), (1, 1.0))
    assert durations.estimate_s(1) == pytest.approx(10e-6 * (1 + 0.2 * (OUTLIER_FACTOR - 1)))
    assert durations.run_inline(1)
    for _ in range(6):
        durations.observe(1, 1.0, inline=True)
    assert not durations.run_inline(1)


def test_a_batch_that_might_be_short_is_tried_inline_now_and_then() -> None:
    near, far = observed((1, 150e-6)), observed((1, 100e-3))
    choices = [near.run_inline(1) for _ in range(3 * TRIAL_BATCHES)]
    assert [n for n, inline in enumerate(choices) if inline] == [0, TRIAL_BATCHES, 2 * TRIAL_BATCHES]
    assert not any(far.run_inline(1) for _ in range(2 * TRIAL_BATCHES))


def test_what_the_thread_measures_can_only_be_too_long() -> None:
    durations = observed((1, 150e-6))
    for _ in range(50):
        durations.observe(1, 5e-3, inline=False)
    assert durations.estimate_s(1) == 150e-6
    for _ in range(50):
        durations.observe(1, 20e-6, inline=False)
    assert durations.run_inline(1)


def test_a_trial_settles_the_matter() -> None:
    durations = observed((1, 20e-6))
    assert durations.run_inline(8), "might take 160 us, so it is tried"
    durations.observe(8, 31e-6, inline=True)
    assert all(durations.run_inline(8) for _ in range(TRIAL_BATCHES))
