"""Understudy: a model server that keeps answering."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from understudy.client import Answer, AsyncClient, Client, ClientError

__all__ = ["Answer", "AsyncClient", "Client", "ClientError", "InputError"]
__version__ = "0.1.0"


class InputError(ValueError):
    """Raised by a Python model: the caller sent something wrong, and gets 400 and these words at once."""


def __getattr__(name: str) -> Any:
    """The client needs NumPy, which the roles don't; it is imported when it is first named."""
    if name in __all__:
        from understudy import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
