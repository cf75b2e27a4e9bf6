"""A few of the random graphs; `python tests/fuzz/graphs.py --count 5000` is the long run."""

from __future__ import annotations

from graphs import judged


def test_a_graph_that_is_proven_row_wise_never_mixes_rows() -> None:
    counts, holes = judged(range(150))
    assert not holes, "\n".join(holes)
    assert counts["proven, row-wise"] > 15, "graphs that are proven are among them"
    assert counts["not proven, mixes"] > 50, "and graphs that must not be"
