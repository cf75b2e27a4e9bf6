"""What tests on a cluster of real processes share."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import write_linear_app


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With one app of standard criticality, `plain`."""
    write_linear_app(tmp_path / "apps" / "plain", "plain", "standard")
    return tmp_path
