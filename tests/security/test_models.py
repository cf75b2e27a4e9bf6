"""What a hostile model gets hold of in its worker."""

from __future__ import annotations

from attacked import Attacked, ask
from harness import infer_body


def test_of_the_environment_a_model_sees_what_libraries_need_and_what_is_allowed(attacked: Attacked) -> None:
    body = infer_body([[1000.0, 0.0, 0.0, 0.0]])
    status, _, answer = ask(attacked.gateway, "POST", "/v2/models/liar/infer", body)
    assert status == 500
    assert "sees ['ALLOWED_ONE'] and" in answer["error"]
    assert "0 of core" in answer["error"]
