"""What `understudy up` makes of the cluster file's manifests."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from understudy.cli.output import Output
from understudy.cli.problems import Problems
from understudy.cli.up import packed

MANIFEST = """name = "{name}"
inputs = [{{ name = "x", datatype = "FP32", shape = [-1] }}]
outputs = [{{ name = "y", datatype = "FP32", shape = [-1] }}]
variants = [{{ name = "v", runtime = "python", artifact = "../model.py", accuracy = 1 }}]
"""


def test_of_two_manifests_of_one_name_the_first_is_deployed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.py").write_text("class Model: ...\n")
    paths = []
    for folder, name in (("a", "wine"), ("b", "digits"), ("c", "wine")):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "APP.toml")
        paths[-1].write_text(MANIFEST.format(name=name))
    problems = Problems(Output())
    with contextlib.ExitStack() as opened:
        packages = packed(map(str, paths), opened, problems)
        assert [package.path for package in packages] == [str(paths[0]), str(paths[1])]
    assert list(problems.by_source) == [str(paths[2])]
    assert f"'wine' is that of {paths[0]} too" in problems.by_source[str(paths[2])]
