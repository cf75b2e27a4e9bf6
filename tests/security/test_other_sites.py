"""Pages of other sites, strangers on the loopback, borrowed names: none of them reaches anything."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from attacked import Attacked, ask
from harness import infer_body

from understudy.adapters.operator_tokens import FILE_NAME

BORROWED = (
    "a.example",
    "localhost.a.example",
    "127.0.0.1.a.example",
    "127.0.0.1@a.example",
)
OWN = ("localhost", "127.0.0.1", "LOCALHOST.", "app.localhost", "[::1]", "::ffff:127.0.0.1", "10.1.2.3")
FOREIGN = (
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "https://localhost:1"},
    {"Origin": "http://[bad"},
    {"Origin": ""},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "Cross-Site", "Sec-Fetch-Mode": "no-cors"},
)
INFER = "/v2/models/plain/infer"


def operators_requests() -> list[tuple[str, str, bytes]]:
    """What a page would like to do to the control API."""
    return [
        ("GET", "/v1/status", b""),
        ("GET", "/v1/events", b""),
        ("GET", "/v1/plan", b""),
        ("GET", "/schema", b""),
        ("GET", "/schema/openapi.json", b""),
        ("GET", "/nowhere", b""),
        ("PUT", "/v1/artifacts/" + "0" * 64, b"code"),
        ("HEAD", "/v1/artifacts/" + "0" * 64, b""),
        ("POST", "/v1/apps", b'{"name": "evil"}'),
        ("DELETE", "/v1/apps/plain", b""),
        ("DELETE", "/v1/quarantine/plain/large", b""),
        ("POST", "/v1/nodes/n1/drain", b"x=1"),
        ("PUT", "/v1/problems", b'{"problems": ["lies"]}'),
        ("POST", "/v1/plan/what-if", b'{"fail": ["node:n1"]}'),
        ("GET", "/v1/audit/spof", b""),
    ]


@pytest.mark.parametrize(("method", "path", "body"), operators_requests())
def test_the_control_api_is_for_those_with_the_token(
    attacked: Attacked, method: str, path: str, body: bytes
) -> None:
    for given in (
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer " + "x" * 43},
        {"Authorization": f"Basic {attacked.token}"},
        {"Authorization": attacked.token},
        {"Authorization": f"Bearer {attacked.token[:-1]}"},
        {"Cookie": f"token={attacked.token}"},
    ):
        status, headers, _ = ask(attacked.control, method, path, body, **given)
        assert status == 401, given
        assert headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("page", FOREIGN, ids=str)
@pytest.mark.parametrize(("method", "path", "body"), operators_requests()[::4])
def test_no_page_of_another_site_is_let_in_even_with_the_token(
    attacked: Attacked, method: str, path: str, body: bytes, page: dict[str, str]
) -> None:
    given = {"Authorization": f"Bearer {attacked.token}", **page}
    assert ask(attacked.control, method, path, body, **given)[0] == 403


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_what_a_form_can_send_is_no_request_to_the_control_api(attacked: Attacked, kind: str) -> None:
    given = {"Authorization": f"Bearer {attacked.token}", "Content-Type": kind}
    assert ask(attacked.control, "POST", "/v1/nodes/n1/drain", b"{}", **given)[0] == 415


@pytest.mark.parametrize("name", BORROWED)
def test_a_borrowed_name_is_misdirected(attacked: Attacked, name: str) -> None:
    """A page whose name was pointed at 127.0.0.1 is of the same origin: only the name tells."""
    token = f"Bearer {attacked.token}"
    for port, path in (
        (attacked.control, "/v1/status"),
        (attacked.control, "/v1/health"),
        (attacked.gateway, "/v2"),
    ):
        host = f"{name}:{port}"
        page = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        assert ask(port, "GET", path, Authorization=token, **page)[0] == 421
    host = f"{name}:{attacked.gateway}"
    assert ask(attacked.gateway, "POST", INFER, infer_body([[0.0] * 4]), Host=host)[0] == 421


@pytest.mark.parametrize("name", OWN)
def test_own_names_and_addresses_are_served(attacked: Attacked, name: str) -> None:
    token = f"Bearer {attacked.token}"
    bracketed = f"[{name}]" if name.startswith("::") else name
    assert ask(attacked.control, "GET", "/v1/status", Host=f"{bracketed}:1", Authorization=token)[0] == 200
    assert ask(attacked.gateway, "GET", "/v2", Host=bracketed)[0] == 200


@pytest.mark.parametrize("page", FOREIGN, ids=str)
def test_inference_is_not_for_pages_of_other_sites_either(attacked: Attacked, page: dict[str, str]) -> None:
    given = {"Content-Type": "text/plain", **page}
    for path in (INFER, "/v2/repository/models/plain/unload"):
        status, _, answer = ask(attacked.gateway, "POST", path, infer_body([[0.0] * 4]), **given)
        assert status == 403
        assert "gateway.cors.origins" in answer["error"]


def test_inference_takes_any_content_type_and_no_token(attacked: Attacked) -> None:
    body = infer_body([[0.0] * 4])
    own = f"http://127.0.0.1:{attacked.gateway}"
    for given in (
        {},
        {"Content-Type": "application/x-www-form-urlencoded"},  # curl -d
        {"Origin": own, "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "https://shop.example", "Sec-Fetch-Site": "cross-site"},
    ):
        assert ask(attacked.gateway, "POST", INFER, body, **given)[0] == 200, given
    # A head that was refused once is refused again, and one that passed stays apart from it.
    for _ in range(3):
        assert ask(attacked.gateway, "POST", INFER, body, Origin="http://evil.example")[0] == 403
        assert ask(attacked.gateway, "POST", INFER, body)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/understudy/status",
        "/%75nderstudy/status",
        "/understudy%2fstatus",
        "/understudy/status/",
        "/understudy/status?a=b",
        "/understudy/failures",
        "http://127.0.0.1/understudy/status",
    ],
)
def test_what_a_gateway_shows_operators_wants_the_token(attacked: Attacked, path: str) -> None:
    assert ask(attacked.gateway, "GET", path)[0] == 401
    assert ask(attacked.gateway, "GET", path, Authorization="Bearer nonsense")[0] == 401
    assert ask(attacked.gateway, "GET", path, Authorization=f"Bearer {attacked.token}")[0] == 200


def test_the_token_is_for_its_owners_eyes_and_found_by_commands(attacked: Attacked, tmp_path: Path) -> None:
    data_dir = Path(attacked.harness.cluster.config.data_dir)
    announced = Path(os.environ["XDG_STATE_HOME"]) / "understudy" / "tokens"
    files = [data_dir / FILE_NAME, announced / f"local:{attacked.control}"]
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(announced.stat().st_mode) == 0o700
    url = f"http://127.0.0.1:{attacked.control}"

    def status(**more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "understudy", "remove", "nobody", "--url", url]
        return subprocess.run(
            command, env={**os.environ, **more}, capture_output=True, text=True, check=False
        )

    assert "not-found" in status().stderr or "nobody" in status().stderr
    stranger = status(XDG_STATE_HOME=str(tmp_path))
    assert stranger.returncode == 2
    assert "UNDERSTUDY_TOKEN" in stranger.stderr
    assert status(XDG_STATE_HOME=str(tmp_path), UNDERSTUDY_TOKEN=attacked.token).returncode == 3


def test_nothing_of_all_this_changed_anything(attacked: Attacked) -> None:
    status, _, shown = ask(attacked.control, "GET", "/v1/status", Authorization=f"Bearer {attacked.token}")
    assert status == 200
    assert [app["name"] for app in shown["apps"]] == ["liar", "plain"]
    assert [node["state"] for node in shown["nodes"]] == ["ready"]
    assert "lies" not in json.dumps(shown)
