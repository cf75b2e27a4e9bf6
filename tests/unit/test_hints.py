"""Errors that a model may owe to its walls say so."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from urllib.error import URLError

import pytest

from understudy.adapters.sandbox.walls import Tier, Walls
from understudy.worker import hints
from understudy.worker.raised import loading_error, model_error


@pytest.fixture(autouse=True)
def behind_walls() -> Iterator[None]:
    hints.stand_behind(Walls(Tier.NAMESPACES, folder="/data/replicas/w1", scratch="/data/scratch/w1"))
    yield
    hints.stand_behind(Walls())


def error(number: int, path: str | None = None) -> OSError:
    return OSError(number, "no", path) if path else OSError(number, "no")


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (error(errno.ENOENT, "/srv/labels.txt"), hints.FILES),
        (error(errno.EACCES, "/etc/shadow"), hints.FILES),
        (error(errno.ENOENT, "/data/replicas/w1/labels.txt"), ""),
        (error(errno.ENOENT, "labels.txt"), ""),
        (error(errno.EROFS, "/data/replicas/w1/cache"), hints.PLACE),
        (error(errno.EFBIG), hints.ROOM),
        (error(errno.ECONNREFUSED), hints.NETWORK),
        (error(errno.EACCES), hints.NETWORK),
        (socket.gaierror(-3, "Temporary failure in name resolution"), hints.NETWORK),
        (URLError(error(errno.ECONNREFUSED)), hints.NETWORK),
        (ValueError("nothing to do with it"), ""),
    ],
)
def test_what_the_walls_may_be_the_reason_of_is_told(raised: Exception, says: str) -> None:
    for told in (model_error(raised, ""), loading_error(raised, "", "app/v")):
        assert told.message.endswith(f"; {says}") if says else "[agent.sandbox]" not in told.message
    hints.stand_behind(Walls())
    assert "[agent.sandbox]" not in model_error(raised, "").message


def test_who_has_the_network_is_not_told_to_ask_for_it() -> None:
    hints.stand_behind(Walls(Tier.LANDLOCK, network=True))
    assert hints.hint(error(errno.ECONNREFUSED)) == ""


def test_a_chain_without_end_ends() -> None:
    one, other = error(errno.EINVAL), error(errno.EINVAL)
    one.__cause__, other.__cause__ = other, one
    assert hints.hint(one) == ""
