"""Python clients: arrays in, arrays out, from any gateway that answers."""

from understudy.client.asynchronous import Answer, AsyncClient, ModelMetadata, ModelState
from understudy.client.errors import (
    BadAnswer,
    ClientError,
    Closed,
    Denied,
    InvalidInput,
    ModelFailed,
    NotFound,
    Overloaded,
    Timeout,
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
    "InvalidInput",
    "ModelFailed",
    "ModelMetadata",
    "ModelState",
    "NotFound",
    "Overloaded",
    "Timeout",
    "Unavailable",
]
