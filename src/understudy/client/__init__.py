"""Python clients: arrays in, arrays out, from any gateway that answers."""

from understudy.client.asynchronous import Answer, AsyncClient, ModelMetadata, ModelState
from understudy.client.errors import (
    BadAnswer,
    ClientError,
    Closed,
    Denied,
    Forbidden,
    InvalidInput,
    ModelFailed,
    NotFound,
    Overloaded,
    RateLimited,
    Timeout,
    Unauthenticated,
    Unavailable,
)
from understudy.client.synchronous import Client

__all__ = [
    "Answer",
    "AsyncClient",
    "BadAnswer",
    "Client",
    "ClientError",
    "Closed",
    "Denied",
    "Forbidden",
    "InvalidInput",
    "ModelFailed",
    "ModelMetadata",
    "ModelState",
    "NotFound",
    "Overloaded",
    "RateLimited",
    "Timeout",
    "Unauthenticated",
    "Unavailable",
]
