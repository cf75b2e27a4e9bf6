"""Whose page sent a request, and by which names a listener may be called."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.core.webpages import Names, foreign_page, host_of, is_loopback

LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
DOMAIN = st.builds(".".join, st.lists(LABEL, min_size=1, max_size=4))
PORT = st.one_of(st.just(""), st.integers(1, 65535).map(lambda port: f":{port}"))


@given(DOMAIN, PORT)
def test_a_name_is_known_only_if_it_was_given(domain: str, port: str) -> None:
    names = Names(["127.0.0.1:8080", "box.example:1"], ["api.example"])
    own = domain in ("box.example", "api.example", "localhost") or domain.endswith(".localhost")
    is_number = domain.replace(".", "").isdigit() and domain.count(".") == 3
    if not is_number:
        assert names.know(f"{domain}{port}".encode()) == own
    assert Names([], [domain]).know(f"{domain.upper()}.{port}".encode())


@given(st.ip_addresses(), PORT)
def test_an_address_is_always_known(address: object, port: str) -> None:
    shown = f"[{address}]" if ":" in str(address) else str(address)
    assert Names([]).know(f"{shown}{port}".encode())


@given(st.binary(max_size=40))
def test_any_host_is_judged(host: bytes) -> None:
    Names([]).know(host)
    foreign_page({b"host": host, b"origin": host})
    host_of(host)


@given(DOMAIN, DOMAIN, PORT, st.sampled_from(["http", "https"]))
def test_a_page_is_foreign_unless_its_own_server_is_asked(
    host: str, other: str, port: str, scheme: str
) -> None:
    asked = {b"host": f"{host}{port}".encode()}
    assert foreign_page({**asked, b"origin": f"{scheme}://{host}{port}".encode()}) == ""
    if host != other:
        assert foreign_page({**asked, b"origin": f"{scheme}://{other}{port}".encode()})
        assert foreign_page({**asked, b"origin": f"{scheme}://{host}{port}.{other}".encode()})
    assert foreign_page({**asked, b"origin": b"null"})


def test_no_page_at_all_is_not_foreign() -> None:
    assert foreign_page({b"host": b"t"}) == ""
    assert foreign_page({b"host": b"t", b"sec-fetch-site": b"none"}) == ""
    assert foreign_page({}) == ""


@pytest.mark.parametrize(
    ("listen", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.8.8.8:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("box.example:1", False),
    ],
)
def test_which_listeners_only_this_machine_reaches(listen: str, loopback: bool) -> None:
    assert is_loopback(listen) is loopback
