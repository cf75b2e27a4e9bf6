"""What clients hold of a gateway; while room is short, nobody more than its share, so that others find some.

A client is an address here: that is all that is known of a connection before it has said anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from understudy.wire.errors import Code, UnderstudyError

if TYPE_CHECKING:
    from understudy.gateway.http import HttpConnection

LOOKED_AT_MAX = 64  # connections of one client, the oldest, when one of them is to go
CROWDED_FRACTION = 0.5  # of the bytes; beyond it shares are looked at
RECOUNT_S = 0.02  # at least, between two counts of who holds what,
RECOUNT_TIMES = 20  # or so many times as long as the last one took


class Connections:
    """All of a gateway, from when they are accepted. Where there are too many, who has most makes room."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._count = 0
        self._of: dict[str, dict[HttpConnection, None]] = {}  # by address; the oldest first

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[HttpConnection]:
        for connections in self._of.values():
            yield from connections

    def add(self, connection: HttpConnection) -> bool:
        """Whether there is room for it; it is counted until it is discarded, in either case."""
        mine = self._of.setdefault(connection.address, {})
        if connection not in mine:
            mine[connection] = None
            self._count += 1
        return self._count <= self.limit or self._make_room(mine)

    def discard(self, connection: HttpConnection) -> None:
        mine = self._of.get(connection.address, {})
        if connection in mine:
            del mine[connection]
            self._count -= 1
            if not mine:
                del self._of[connection.address]

    def _make_room(self, mine: dict[HttpConnection, None]) -> bool:
        most = max(self._of.values(), key=len)
        if len(most) <= len(mine):
            return False
        looked_at = list(islice(most, LOOKED_AT_MAX))
        for connection in sorted(looked_at, key=lambda each: not each.idle):
            if connection.give_way():
                self.discard(connection)
                return True
        return False


class Holding(NamedTuple):
    """`app` is empty while it isn't known."""

    client: str
    app: str
    size: int  # in bytes


class ByteShares:
    """Bodies that come or are being answered, and answers that aren't read yet: `limit` bytes in all.

    One half, or one body of `body_bytes_max`, is for whoever comes first. Of the rest each client, and each
    app, has the same share.
    """

    def __init__(self, limit: int, body_bytes_max: int, holdings: Callable[[], Iterable[Holding]]) -> None:
        self.crowded = min(max(int(limit * CROWDED_FRACTION), body_bytes_max), limit)  # ask beyond it
        self._limit = limit
        self._holdings = holdings
        self._clients: Counter[str] = Counter()
        self._apps: Counter[str] = Counter()
        self._recount_at = 0.0

    def refusal(self, held: int, client: str, app: str = "") -> UnderstudyError | None:
        """What to tell `client`, if it may not have what it has just taken: of now `held` bytes in all."""
        if held <= self.crowded:
            return None
        why = ""
        if held > self._limit:
            why = "too many request bodies at once"
        else:
            self._recount()
            room = self._limit - self.crowded
            for who, what, sizes in ((client, "this client", self._clients), (app, "this app", self._apps)):
                if who and sizes[who] > room / (len(sizes) or 1):
                    why = f"too many request bodies at once: {what} has its share"
        return UnderstudyError(Code.SHED, why) if why else None

    def _recount(self) -> None:
        began = monotonic()
        if began < self._recount_at:
            return
        self._clients.clear()
        self._apps.clear()
        for client, app, size in self._holdings():
            if size:
                self._clients[client] += size
                if app:
                    self._apps[app] += size
        ended = monotonic()
        self._recount_at = ended + max(RECOUNT_S, RECOUNT_TIMES * (ended - began))
