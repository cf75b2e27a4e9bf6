"""What is believed of a worker's words: a model runs in its process."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.core.gateway.hearsay import FACT_CHARS_MAX, FACTS_MAX, MESSAGE_CHARS_MAX, heard
from understudy.wire.errors import Code, presentable
from understudy.wire.messages import Failure
from understudy.wire.statuses import STATUSES

OURS_ALONE = (
    Code.UNAUTHENTICATED,
    Code.FORBIDDEN,
    Code.NOT_FOUND,
    Code.CONFLICT,
    Code.SHED,
    Code.RATE_LIMITED,
    Code.POISON,
    Code.LINK_LOST,
)


@pytest.mark.parametrize("code", OURS_ALONE)
def test_what_only_we_say_is_a_failure_of_the_model(code: Code) -> None:
    assert heard(Failure(code, "as you like it")).code is Code.MODEL_FAILED


@given(
    st.sampled_from(Code),
    st.text(max_size=5000),
    st.dictionaries(
        st.text(max_size=30) | st.sampled_from(["status", "allow", "wait_s"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=500),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
            ),
        ),
        max_size=20,
    ),
)
def test_whatever_it_says_is_plain_and_short(code: Code, message: str, context: dict[str, Any]) -> None:
    error = heard(Failure(code, message, context, "t" * 100_000))
    assert STATUSES[error.code].http in (400, 408, 413, 500, 503)
    assert len(error.context) <= FACTS_MAX
    assert not {"status", "allow"} & set(error.context)
    assert all(isinstance(value, str | int | float) for value in error.context.values())
    bound = 6 * (MESSAGE_CHARS_MAX + 1 + FACTS_MAX * 2 * (FACT_CHARS_MAX + 10))  # as escapes
    assert len(str(error)) <= bound
    assert len(error.traceback) <= 20_001
    assert presentable(str(error)) == str(error)


def test_the_models_own_words_reach_the_client() -> None:
    error = heard(Failure(Code.INVALID_ARGUMENT, "age is negative", {"row": 3}))
    assert (error.code, str(error)) == (Code.INVALID_ARGUMENT, "age is negative (row=3)")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("two\n\tlines", "two\n\tlines"),
        ("\x1b[2J\x1b]0;owned\x07", "\\x1b[2J\\x1b]0;owned\\x07"),
        ("over\rwritten", "over\\rwritten"),
        ("\x9b31m", "\\x9b31m"),
        ("user\u202etxt.exe", "user\\u202etxt.exe"),
        ("gr\u00fc\u00dfe \u4f60\u597d \U0001f600", "gr\u00fc\u00dfe \u4f60\u597d \U0001f600"),
        ("half \ud800", "half \\ud800"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text: str, shown: str) -> None:
    assert presentable(text) == shown
