"""What a failure is called elsewhere: its status over HTTP and gRPC, and of a command. Every door reads this.

Numbers, so that nobody has to import a transport's library to know them. gRPC's are those of its
documentation ("Status codes and their use in gRPC"), a command's those of `cli.exits.Exit`.
"""

from __future__ import annotations

from typing import NamedTuple

from understudy.wire.errors import Code

# Which cluster a request is meant for; on the answer to one that was meant for another, which one this is.
CLUSTER_HEADER = "Understudy-Cluster"


class Statuses(NamedTuple):
    http: int
    grpc: int
    exit: int


# gRPC
_CANCELLED, _INVALID_ARGUMENT, _DEADLINE_EXCEEDED, _NOT_FOUND = 1, 3, 4, 5
_PERMISSION_DENIED, _RESOURCE_EXHAUSTED, _FAILED_PRECONDITION = 7, 8, 9
_INTERNAL, _UNAVAILABLE, _UNAUTHENTICATED = 13, 14, 16
# A command
_FAILED, _USAGE, _MISSING, _NOBODY, _TIMEOUT = 1, 2, 3, 4, 5

STATUSES: dict[Code, Statuses] = {
    Code.INVALID_ARGUMENT: Statuses(400, _INVALID_ARGUMENT, _USAGE),
    Code.UNAUTHENTICATED: Statuses(401, _UNAUTHENTICATED, _USAGE),
    Code.FORBIDDEN: Statuses(403, _PERMISSION_DENIED, _FAILED),
    Code.NOT_FOUND: Statuses(404, _NOT_FOUND, _MISSING),
    Code.CONFLICT: Statuses(409, _FAILED_PRECONDITION, _FAILED),
    Code.TOO_LARGE: Statuses(413, _RESOURCE_EXHAUSTED, _USAGE),  # as the gRPC library says of a large message
    Code.TIMEOUT: Statuses(408, _DEADLINE_EXCEEDED, _TIMEOUT),
    Code.BUSY: Statuses(503, _RESOURCE_EXHAUSTED, _NOBODY),
    Code.SHED: Statuses(503, _RESOURCE_EXHAUSTED, _NOBODY),
    Code.RATE_LIMITED: Statuses(429, _RESOURCE_EXHAUSTED, _NOBODY),
    Code.DRAINING: Statuses(503, _UNAVAILABLE, _NOBODY),
    Code.UNAVAILABLE: Statuses(503, _UNAVAILABLE, _NOBODY),
    Code.LINK_LOST: Statuses(502, _UNAVAILABLE, _NOBODY),
    Code.CANCELLED: Statuses(500, _CANCELLED, _FAILED),  # over HTTP nobody is left to read it
    Code.MODEL_FAILED: Statuses(500, _INTERNAL, _FAILED),
    Code.OUTPUT_INVALID: Statuses(500, _INTERNAL, _FAILED),
    Code.OUT_OF_MEMORY: Statuses(503, _UNAVAILABLE, _FAILED),
    Code.POISON: Statuses(500, _INTERNAL, _FAILED),
    Code.ARTIFACT_CORRUPT: Statuses(400, _INVALID_ARGUMENT, _FAILED),
    Code.ARTIFACT_MISSING: Statuses(404, _NOT_FOUND, _MISSING),
    Code.LOAD_FAILED: Statuses(500, _FAILED_PRECONDITION, _FAILED),
    Code.STORE_UNAVAILABLE: Statuses(503, _UNAVAILABLE, _NOBODY),
    Code.PROTOCOL: Statuses(500, _INTERNAL, _FAILED),
    Code.CONFIG: Statuses(500, _FAILED_PRECONDITION, _USAGE),
    Code.INTERNAL: Statuses(500, _INTERNAL, _FAILED),
}
