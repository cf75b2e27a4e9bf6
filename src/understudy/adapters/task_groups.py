"""What the tasks of a group raised, without the groups around it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar

E = TypeVar("E", bound=BaseException)


def first_of(group: BaseExceptionGroup[BaseException], kind: type[E]) -> E | None:
    """The first `kind` in `group`, however deep; None if there is none."""
    for error in group.exceptions:
        found = first_of(error, kind) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, kind):
            return found
    return None


@contextlib.contextmanager
def ungrouped(kind: type[BaseException]) -> Iterator[None]:
    """Raise the first `kind` that the block's tasks raised by itself. Groups without any pass."""
    try:
        yield
    except BaseExceptionGroup as group:
        error = first_of(group, kind)
        if error is None:
            raise
        raise error from group
