"""Checks that stay on in production.

A broken invariant means that this process no longer knows what is true. It ends at once, and its
supervisor starts a clean one; carrying on would spread the damage.
"""


class InvariantBroken(BaseException):
    """Not an `Exception` on purpose: no handler for ordinary failures may swallow it."""


def check(condition: bool, what: str) -> None:
    """Raise `InvariantBroken` unless `condition` holds. `what` states the fact that should hold."""
    if not condition:
        raise InvariantBroken(what)
