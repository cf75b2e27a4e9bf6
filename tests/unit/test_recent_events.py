"""Who floods the event log pushes out what it said itself."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from understudy.core.recent import RecentEvents, subject, surplus
from understudy.wire.records import Event


def event(number: int, app: str = "", node: str = "") -> Event:
    return Event("app.deployed", number, "controller:c1", "", app, node)


def test_a_flood_leaves_what_others_said() -> None:
    kept = RecentEvents(10)
    kept.add(event(0, "quiet"))
    kept.add(event(1, node="n1"))
    for number in range(2, 1000):
        kept.add(event(number, "loud", f"n{number % 7}"))
    assert [each.at_unix_ms for each in kept] == [0, 1, *range(992, 1000)]
    assert [each.at_unix_ms for each in kept.take(3)] == [0, 1, 992]
    assert len(kept) == 7
    assert [each.at_unix_ms for each in kept.take()] == list(range(993, 1000))
    assert not kept.take()


apps = st.lists(st.sampled_from(["", "a", "b", "c"]), max_size=200)


@given(apps, st.integers(1, 30))
def test_at_most_so_many_are_kept_and_each_has_its_share(said: list[str], limit: int) -> None:
    events = [event(number, app) for number, app in enumerate(said)]
    kept = list(RecentEvents(limit, events))
    assert len(kept) == min(limit, len(events))
    counts, left = Counter(map(subject, events)), Counter(map(subject, kept))
    share = limit // (len(counts) or 1)
    for who, count in counts.items():
        assert left[who] >= min(count, share)
        own = [each for each in events if subject(each) == who]
        assert [each for each in kept if subject(each) == who] == own[len(own) - left[who] :]
    assert sorted(kept, key=lambda each: each.at_unix_ms) == kept


subjects = st.tuples(st.sampled_from("abcd"), st.just(""))


@given(st.dictionaries(subjects, st.integers(1, 50)), st.integers(0, 60))
def test_what_is_too_much_is_taken_from_who_has_most(counts: dict[tuple[str, str], int], limit: int) -> None:
    gone = surplus(counts, limit)
    left = {who: count - gone.get(who, 0) for who, count in counts.items()}
    assert sum(left.values()) == min(sum(counts.values()), limit)
    for who in gone:
        assert left[who] >= max(left.values()) - 1
