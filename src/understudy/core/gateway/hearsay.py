"""What a worker says of a failure, as far as it is believed: its process runs other people's code.

A model doesn't choose the status that its clients get, sends nobody to another server, and fills no log.
"""

from __future__ import annotations

from typing import Any

from understudy.wire.errors import Code, UnderstudyError, cut
from understudy.wire.messages import Failure

# All that a worker of ours says. Anything else is a failure of its model.
CODES = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.TOO_LARGE,
        Code.TIMEOUT,
        Code.BUSY,
        Code.DRAINING,
        Code.UNAVAILABLE,
        Code.MODEL_FAILED,
        Code.OUTPUT_INVALID,
        Code.OUT_OF_MEMORY,
        Code.CONFIG,
        Code.INTERNAL,
    }
)
MESSAGE_CHARS_MAX = 2000
TRACEBACK_CHARS_MAX = 20_000
FACTS_MAX, FACT_CHARS_MAX = 8, 200


def heard(failure: Failure) -> UnderstudyError:
    code = failure.code if failure.code in CODES else Code.MODEL_FAILED
    error = UnderstudyError(code, cut(failure.message, MESSAGE_CHARS_MAX), **_facts(failure.context))
    error.traceback = cut(failure.traceback, TRACEBACK_CHARS_MAX)
    return error


def _facts(context: dict[str, Any]) -> dict[str, str | int | float | bool]:
    """Plain and short ones. `status` and `allow` are for those who refuse requests themselves."""
    facts: dict[str, str | int | float | bool] = {}
    for name, value in context.items():
        if len(facts) == FACTS_MAX:
            break
        if name in ("status", "allow") or not name.isidentifier() or len(name) > FACT_CHARS_MAX:
            continue
        if isinstance(value, str):
            facts[name] = cut(value, FACT_CHARS_MAX)
        elif isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63):
            facts[name] = value
    return facts
