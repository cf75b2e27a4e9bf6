"""Pages of other origins: who may read answers, and what is told to whom."""

from __future__ import annotations

import pytest

from understudy.gateway.cors import Cors
from understudy.settings.gateway import CorsSettings

PREFLIGHT = {b"origin": b"https://shop.example", b"access-control-request-method": b"POST"}
LISTED = CorsSettings(origins=("https://shop.example/", "https://OTHER.example"), headers=("X-Tenant",))


def told(settings: CorsSettings, method: bytes, headers: dict[bytes, bytes]) -> dict[str, str]:
    lines = Cors(settings).lines(method, headers).decode().splitlines()
    return dict(line.split(": ", 1) for line in lines)


def test_a_preflight_is_told_what_it_may_send() -> None:
    answer = told(LISTED, b"OPTIONS", PREFLIGHT)
    assert answer["Access-Control-Allow-Origin"] == "https://shop.example"
    assert "POST" in answer["Access-Control-Allow-Methods"]
    for header in ("Content-Type", "Authorization", "Inference-Header-Content-Length", "X-Tenant"):
        assert header in answer["Access-Control-Allow-Headers"]
    assert answer["Access-Control-Max-Age"] == "600"


def test_an_answer_may_be_read_with_what_it_says_of_itself() -> None:
    answer = told(LISTED, b"POST", {b"origin": b"https://other.example"})
    assert answer["Access-Control-Allow-Origin"] == "https://other.example"
    assert "Understudy-Degraded" in answer["Access-Control-Expose-Headers"]
    assert answer["Vary"] == "Origin"


@pytest.mark.parametrize("origin", [b"https://evil.example", b"null", b"https://shop.example.evil.example"])
def test_pages_of_other_origins_are_told_nothing(origin: bytes) -> None:
    assert told(LISTED, b"OPTIONS", PREFLIGHT | {b"origin": origin}) == {"Vary": "Origin"}


def test_caches_are_told_that_answers_differ_also_without_an_origin() -> None:
    assert told(LISTED, b"GET", {}) == {"Vary": "Origin"}


def test_any_origin_is_answered_alike() -> None:
    answer = told(CorsSettings(origins=("*",)), b"POST", {b"origin": b"null"})
    assert answer["Access-Control-Allow-Origin"] == "*"
    assert "Vary" not in answer
