"""Which variables of the environment reach models."""

from __future__ import annotations

import pytest

from understudy.agent.variables import for_models

KEPT = ("PATH", "HOME", "LC_ALL", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTHONPATH", "TZ")
LEFT_OUT = (
    "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "UNDERSTUDY_TOKEN", "UNDERSTUDY_API_KEY", "https_proxy",
    "PIP_INDEX_URL", "MY_PATH", "PATH2", "path", "KUBERNETES_SERVICE_HOST", "SSH_AUTH_SOCK", "LD_PRELOAD",
)  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_what_libraries_need_is_kept(name: str) -> None:
    assert for_models({name: "v"}, ())[name] == "v"


@pytest.mark.parametrize("name", LEFT_OUT)
def test_everything_else_is_left_out_unless_the_operator_allows_it(name: str) -> None:
    assert name not in for_models({name: "v"}, ())
    assert for_models({name: "v"}, (name,))[name] == "v"
    assert for_models({name: "v"}, (f"{name[:-1]}*",))[name] == "v"


def test_telemetry_is_off_unless_somebody_wants_it() -> None:
    assert for_models({}, ()) == {"ORT_DISABLE_TELEMETRY": "1"}
    assert for_models({"ORT_DISABLE_TELEMETRY": "0"}, ()) == {"ORT_DISABLE_TELEMETRY": "0"}
