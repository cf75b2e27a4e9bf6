"""What a call can raise: always a `ClientError`, never a library's own exception.

Lives here: the classes and which answer of a gateway leads to which. A class says what a caller may do
about it; `code` says exactly what happened (docs/reference/errors.md).
"""

from __future__ import annotations

from typing import Any

from understudy.wire.errors import Code, UnderstudyError


class ClientError(UnderstudyError):
    """Root of everything that a client raises.

    `code` is stable, `retryable` says whether the same call may succeed later or elsewhere, `message` is for
    a person. `request_id` names the request in the gateway's log, if it got that far; `gateway` is the URL
    that said so, None if nobody did. `retry_after_s` is what the gateway asked for.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        status: int | None = None,
        request_id: str | None = None,
        gateway: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(code, message)
        self.status = status
        self.request_id = request_id
        self.gateway = gateway
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        facts = [f"code={self.code}"]
        facts += [f"request_id={self.request_id}"] if self.request_id else []
        facts += [f"gateway={self.gateway}"] if self.gateway else []
        return f"{self.message} ({', '.join(facts)})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pools of processes hand exceptions on by pickling them."""
        return type(self).__new__, (type(self), self.code, self.message), self.__dict__


class InvalidInput(ClientError):
    """What was to be sent doesn't fit the model; the message names the tensor and what is wanted."""


class NotFound(ClientError):
    """No such model, version or path."""


class Denied(ClientError):
    """The gateway doesn't let this client do that: `Unauthenticated` or `Forbidden`."""


class Unauthenticated(Denied):
    """The key or token is missing, wrong or expired."""


class Forbidden(Denied):
    """The key or token is good, and doesn't permit this."""


class Timeout(ClientError):
    """No answer within the deadline of the call."""


class Overloaded(ClientError):
    """The gateway sheds load, or this client is over its rate: `RateLimited`. Slow down."""


class RateLimited(Overloaded):
    """This client asks more often than it may. `retry_after_s` says when its next request is let in."""


class Unavailable(ClientError):
    """No gateway could be reached, or none has a replica that could answer."""


class ModelFailed(ClientError):
    """The model raised, or what it returned was refused."""


class BadAnswer(ClientError):
    """What came is no answer of the Open Inference Protocol. Is the URL that of a gateway?"""


class Closed(ClientError):
    """The client was closed, or is used where it can't be."""


CLASSES: dict[Code, type[ClientError]] = {
    Code.INVALID_ARGUMENT: InvalidInput,
    Code.UNAUTHENTICATED: Unauthenticated,
    Code.FORBIDDEN: Forbidden,
    Code.NOT_FOUND: NotFound,
    Code.CONFLICT: InvalidInput,
    Code.TOO_LARGE: InvalidInput,
    Code.TIMEOUT: Timeout,
    Code.BUSY: Overloaded,
    Code.SHED: Overloaded,
    Code.RATE_LIMITED: RateLimited,
    Code.DRAINING: Unavailable,
    Code.UNAVAILABLE: Unavailable,
    Code.LINK_LOST: Unavailable,
    Code.CANCELLED: Unavailable,
    Code.MODEL_FAILED: ModelFailed,
    Code.OUTPUT_INVALID: ModelFailed,
    Code.OUT_OF_MEMORY: Unavailable,
    Code.POISON: ModelFailed,
    Code.PROTOCOL: BadAnswer,
    Code.CONFIG: InvalidInput,
}

# For proxies and for other servers of the protocol, which send no code.
CODES: dict[int, Code] = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.FORBIDDEN,
    404: Code.NOT_FOUND,
    405: Code.INVALID_ARGUMENT,
    408: Code.TIMEOUT,
    413: Code.TOO_LARGE,
    415: Code.INVALID_ARGUMENT,
    422: Code.INVALID_ARGUMENT,
    429: Code.RATE_LIMITED,
    431: Code.TOO_LARGE,
    502: Code.LINK_LOST,
    503: Code.UNAVAILABLE,
    504: Code.TIMEOUT,
}


def refusal(
    status: int,
    code: str | None,
    message: str,
    *,
    request_id: str | None,
    gateway: str,
    retry_after_s: float | None,
) -> ClientError:
    """The exception for an answer that is none of 2xx. A `code` of a newer gateway is read by its status."""
    unknown = Code.INTERNAL if status >= 500 else Code.PROTOCOL
    known = Code(code) if code in {str(c) for c in Code} else CODES.get(status, unknown)
    class_ = CLASSES.get(known, ClientError)
    return class_(
        known, message, status=status, request_id=request_id, gateway=gateway, retry_after_s=retry_after_s
    )
