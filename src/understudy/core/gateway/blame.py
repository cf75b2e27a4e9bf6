"""What a request that replicas failed says about them, once it is known who answered it. Rules: `conduct`."""

from __future__ import annotations

from collections.abc import Callable

from understudy.core.gateway.conduct import Conduct, digest_of
from understudy.core.gateway.rotation import App, Replica, Request
from understudy.wire.errors import Code

# What a model or its worker did wrong with a request. Not: bad input, no time, no room, a broken connection.
FAILURES = frozenset({Code.MODEL_FAILED, Code.OUTPUT_INVALID, Code.OUT_OF_MEMORY, Code.INTERNAL})


def settle(request: Request, by: Replica | None, random: Callable[[], float]) -> bool:
    """Blame whoever failed `request`, which `by` answered, if anybody did. True: a breaker moved.

    `random` gives [0, 1).
    """
    faults, request.faults = request.faults, ()
    moved, digest = False, b""
    judged: set[Conduct] = set()
    for replica, stream, at in faults:
        if by is not None and replica.equals(by):
            moved |= replica.breaker.failed(at, random(), stream)
            continue
        moved |= replica.breaker.failed_alike(at, stream)
        if replica.conduct in judged:
            continue  # once per variant, however many of its replicas had it
        judged.add(replica.conduct)
        digest = digest or digest_of(request.body)
        conduct = replica.conduct
        smaller_can = by is not None and by.version == replica.version and not conduct.answered
        if smaller_can or conduct.answered_before(request.body):
            name = b"%b/%d" % (replica.id.encode(), stream)  # the request is good, so each time counts
        else:
            name = digest
        if request.app.conducts.judge(replica.version, replica.variant, name, request.client, at):
            _convict(request.app, replica, at, random)
            moved = True
    return moved


def _convict(app: App, guilty: Replica, now: float, random: Callable[[], float]) -> None:
    for replica in app.replicas.values():
        if (replica is guilty or replica.equals(guilty)) and replica.breaker.closed:
            replica.breaker.eject(now, random())
