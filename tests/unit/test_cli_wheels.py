"""A manifest that names packages: resolved by pip from wheels at hand, packed, and described."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from tests.wheels import write_wheel

from understudy.cli.bare import Wishes, sources
from understudy.cli.packing import Package, pack
from understudy.wire.errors import CommandError, UnderstudyError

MANIFEST = """
name = "sorter"
inputs = [{{ name = "x", datatype = "FP32", shape = [-1, 4] }}]
outputs = [{{ name = "y", datatype = "FP32", shape = [-1] }}]
[[variants]]
name = "full"
runtime = "python"
artifact = "model"
accuracy = 0.9
{extra}
"""


@pytest.fixture(autouse=True)
def no_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def manifest(folder: Path, requirements: str | None, extra: str) -> Path:
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "model.py").write_text("class Model: pass\n")
    if requirements is not None:
        (folder / "model" / "requirements.txt").write_text(requirements)
    (folder / "APP.toml").write_text(MANIFEST.format(extra=extra))
    return folder / "APP.toml"


def packages(package: Package) -> list[str]:
    [wheels] = [a for a in package.artifacts if a.ref.file_name.endswith(".wheels.tar")]
    assert package.description["variants"][0]["wheels"]["digest"] == wheels.ref.digest
    with tarfile.open(fileobj=wheels.content) as tar:
        return tar.getnames()


def test_what_requirements_ask_for_travels_with_what_that_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(tmp_path / "cache", "frobnicate", "2.1", needs=("gadget>=1",))
    write_wheel(tmp_path / "cache", "gadget", "1.5")
    write_wheel(tmp_path / "cache", "unasked")
    monkeypatch.setenv("PIP_FIND_LINKS", (tmp_path / "cache").as_uri())
    path = manifest(tmp_path, "frobnicate>=2\n", 'requirements = "model/requirements.txt"')
    with pack(path) as package:
        assert packages(package) == ["frobnicate-2.1-py3-none-any.whl", "gadget-1.5-py3-none-any.whl"]
        assert package.notes == ("requirements.txt: frobnicate 2.1, gadget 1.5",)


def test_wheels_at_hand_ask_nobody(tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels", "frobnicate", "2.1")
    write_wheel(tmp_path / "wheels", "unasked")
    path = manifest(tmp_path, "frobnicate\n", 'wheels = "wheels"\nrequirements = "model/requirements.txt"')
    with pack(path) as package:
        assert packages(package) == ["frobnicate-2.1-py3-none-any.whl"]
    with pack(manifest(tmp_path, None, 'wheels = "wheels"')) as package:
        assert len(packages(package)) == 2


def test_nothing_beside_the_requirements_runs(tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels", "frobnicate", "2.1")
    path = manifest(tmp_path, "frobnicate\n", 'wheels = "wheels"\nrequirements = "model/requirements.txt"')
    (tmp_path / "model" / "pip.py").write_text("open('ran', 'w').close()\n")
    with pack(path) as package:
        assert packages(package) == ["frobnicate-2.1-py3-none-any.whl"]
    assert not (tmp_path / "model" / "ran").exists()


def test_what_cannot_be_had_is_told_in_pips_words(tmp_path: Path) -> None:
    path = manifest(tmp_path, "no-such-frobnicate\n", 'requirements = "model/requirements.txt"')
    with pytest.raises(CommandError, match="No matching distribution found for no-such-frobnicate") as raised:
        pack(path)
    assert raised.value.hint.startswith("is its name right")


def test_what_does_not_go_with_understudy_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels", "msgspec", "0.2")
    extra = 'wheels = "wheels"\nrequirements = "model/requirements.txt"'
    with pytest.raises(CommandError, match=r"msgspec==0\.2(.|\n)*msgspec>=0\.21") as raised:
        pack(manifest(tmp_path, "msgspec==0.2\n", extra))
    assert raised.value.hint.startswith("Understudy's own requirements hold too")


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ('requirements = "nowhere.txt"', r"variants\[0\].requirements: .* is no file"),
        ('wheels = "model"', r"variants\[0\].wheels: .* is no directory with"),
        ('python = "venv/bin/python"', "is no absolute path"),
        ('python = "/usr/bin/python3"\nwheels = "model"', "an interpreter has its own packages"),
    ],
)  # fmt: skip
def test_a_manifest_that_makes_no_sense_is_refused(tmp_path: Path, extra: str, said: str) -> None:
    with pytest.raises(UnderstudyError, match=said):
        pack(manifest(tmp_path, None, extra))


def test_requirements_that_the_manifest_does_not_name_are_remarked_on(tmp_path: Path) -> None:
    with pack(manifest(tmp_path, "frobnicate\n", "")) as package:
        assert "requirements = 'model/requirements.txt'" in package.notes[0]
        assert package.description["variants"][0].get("wheels") is None


def test_a_directory_without_a_manifest_brings_its_requirements(tmp_path: Path) -> None:
    manifest(tmp_path, "frobnicate\n", "").unlink()
    wishes = Wishes(inputs=["x:FP32:-1,4"], outputs=["y:FP32:-1"], save=tmp_path / "kept.toml")
    [source], text = sources([tmp_path / "model"], wishes)
    assert source.manifest.variants[0].requirements == "model/requirements.txt"
    assert 'requirements = "model/requirements.txt"' in text
