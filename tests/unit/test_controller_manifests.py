"""Which manifest brought what: `up` deploys one only if it changed since it was deployed last."""

from __future__ import annotations

import pytest

from understudy.core.controller.manifests import is_behind, noted
from understudy.core.controller.stored import CurrentVersion
from understudy.wire.records import AppVersion, ArtifactRef, Variant

APP = AppVersion("a", 2, (Variant("full", "onnx", ArtifactRef("d", 1, "f"), 0.9),), content="c2")
OURS, CI = "/srv/a/APP.toml", "/ci/a/APP.toml"


def books(*brought: tuple[str, str], version: int = 2) -> CurrentVersion:
    """After each (path, content) was deployed, in order."""
    current = CurrentVersion(version, 2)
    for path, content in brought:
        current = CurrentVersion(version, 2, manifests=noted(current, path, content, 8))
    return current


@pytest.mark.parametrize(
    ("history", "content", "behind"),
    [
        pytest.param([(OURS, "c1"), (CI, "c2")], "c1", True, id="ci-deployed-later"),
        pytest.param([(OURS, "c1"), (CI, "c2")], "c3", False, id="edited-after-that"),
        pytest.param([(OURS, "c1"), (OURS, "c2")], "c1", False, id="edited-back"),
        pytest.param([(CI, "c2")], "c1", False, id="never-deployed"),
        pytest.param([("/moved/from/APP.toml", "c1"), (CI, "c2")], "c1", True, id="moved"),
    ],
)
@pytest.mark.parametrize("version", [2, 0], ids=["there", "removed"])
def test_a_manifest_is_behind_if_it_brought_the_same_when_it_was_deployed_last(
    history: list[tuple[str, str]], content: str, behind: bool, version: int
) -> None:
    app = APP if version else None
    assert is_behind(OURS, content, books(*history, version=version), app) is behind


def test_what_nobody_kept_books_of_stays() -> None:
    """It was removed, as a gateway told, or deployed by a version that kept no books."""
    assert is_behind(OURS, "c1", CurrentVersion(0, 2), None)
    old = AppVersion("a", 2, APP.variants)
    assert is_behind(OURS, "c1", CurrentVersion(2, 2), old)
    assert not is_behind(OURS, "c1", CurrentVersion(2, 2), APP), (
        "deployed through the API, without a manifest"
    )
    assert not is_behind(OURS, "c1", None, None), "never heard of"


def test_the_books_are_bounded_and_keep_the_newest() -> None:
    current = CurrentVersion(1, 1)
    for number in [*range(5), 1]:
        current = CurrentVersion(1, 1, manifests=noted(current, f"/{number}", f"c{number}", 3))
    assert list(current.manifests.values()) == ["c3", "c4", "c1"]
    assert noted(current, "", "c9", 3) == current.manifests
