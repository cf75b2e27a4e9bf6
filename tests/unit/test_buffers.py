"""Memory for large messages is used again, and never while somebody still looks at it."""

from __future__ import annotations

import gc
import random

import numpy as np
import pytest

from understudy.adapters.buffers import KEPT_BYTES_MAX, Buffers, Gathered


def place(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def test_freed_memory_is_used_again():
    buffers = Buffers()
    first = buffers.take(200_000)
    where = place(first)
    del first
    again = buffers.take(150_000)
    assert place(again) == where
    assert len(again) == 150_000
    assert place(buffers.take(10_000)) != where, "a small message doesn't hold a large block"


@pytest.mark.parametrize("hold", [lambda view: view[7:9], lambda view: np.frombuffer(view, np.float32)[3:]])
def test_what_is_looked_at_is_left_alone(hold):
    buffers = Buffers()
    view = buffers.take(200_000)
    where, held = place(view), hold(view)
    del view
    other = buffers.take(200_000)
    assert place(other) != where
    del held
    assert place(buffers.take(200_000)) == where


def test_what_is_beyond_the_bound_displaces_nothing_that_is_in_use():
    """One client more than the bound has room for, and no memory was ever used again."""
    buffers, size = Buffers(), 600_000
    count = KEPT_BYTES_MAX // size + 3
    held = [buffers.take(size) for _ in range(count)]
    for view in held:
        view[:4] = b"used"  # fresh memory has zeros
    again = 0
    for turn in range(count):
        held[turn] = memoryview(b"")
        held[turn] = buffers.take(size)
        again += bytes(held[turn][:4]) == b"used"
    assert again >= KEPT_BYTES_MAX // size


def test_nothing_that_is_held_ever_changes_and_what_is_kept_is_bounded():
    chance, buffers, held = random.Random(0), Buffers(), []
    for i in range(500):
        view = buffers.take(chance.randrange(100_000, 3_000_000))
        view[:4] = view[-4:] = i.to_bytes(4, "little")
        held.append((i, view))
        if chance.random() < 0.8:
            held.pop(chance.randrange(len(held)))
        if len(held) > 20:
            held.clear()
        assert all(bytes(view[:4]) == bytes(view[-4:]) == i.to_bytes(4, "little") for i, view in held)
        assert sum(map(len, buffers._kept)) <= KEPT_BYTES_MAX
    gc.collect()


def test_no_memory_is_an_error_of_its_own():
    with pytest.raises(MemoryError):
        Buffers().take(1 << 60)


@pytest.mark.parametrize("size", [0, 1, 5000, 131_071, 131_072, 1_000_000])
@pytest.mark.parametrize("piece", [1000, 65_536])
def test_pieces_become_a_whole(size: int, piece: int) -> None:
    whole = random.Random(size).randbytes(size)
    gathered = Gathered()
    for at in range(0, size, piece):
        gathered.add(whole[at : at + piece])
    assert gathered.size == size
    assert gathered.whole() == whole
