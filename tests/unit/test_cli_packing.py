"""Manifests become the same upload every time, and mistakes in them are named."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from understudy.cli.packing import find_manifests, pack
from understudy.wire.errors import UnderstudyError

MANIFEST = """
name = "letters"
[[variants]]
name = "large"
runtime = "onnx"
artifact = "large.onnx"
accuracy = 0.9
[[variants]]
name = "code"
runtime = "python"
artifact = "code"
accuracy = 0.8
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "large.onnx").write_bytes(b"weights")
    (tmp_path / "code" / "data").mkdir(parents=True)
    (tmp_path / "code" / "model.py").write_text("class Model: ...\n")
    (tmp_path / "code" / "data" / "table.bin").write_bytes(b"\1\2\3")
    manifest = tmp_path / "APP.toml"
    manifest.write_text(MANIFEST)
    return manifest


def digests(manifest: Path) -> list[str]:
    with pack(manifest) as package:
        return [artifact.ref.digest for artifact in package.artifacts]


def test_a_file_is_its_own_artifact(app: Path) -> None:
    with pack(app) as package:
        first = package.artifacts[0]
        assert first.content.read() == b"weights"
    assert first.ref.digest == hashlib.sha256(b"weights").hexdigest()
    assert (first.ref.size_bytes, first.ref.file_name, first.ref.format) == (7, "large.onnx", "file")


def test_the_description_is_the_manifest_with_artifacts_by_digest(app: Path) -> None:
    with pack(app) as package:
        pass
    assert package.name == "letters"
    assert package.description["criticality"] == "standard"
    large, code = package.description["variants"]
    assert large["artifact"]["digest"] == package.artifacts[0].ref.digest
    assert (large["name"], large["runtime"], large["accuracy"]) == ("large", "onnx", 0.9)
    assert code["artifact"]["format"] == "tar"


def test_a_directory_is_packed_to_the_same_bytes_whoever_packs_it_and_when(app: Path) -> None:
    before = digests(app)
    code = app.parent / "code"
    (code / "model.py").chmod(0o600)
    os.utime(code / "model.py", (1, 1))
    (code / "__pycache__").mkdir()
    (code / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"left by a run")
    (code / ".cache").write_text("hidden")
    assert digests(app) == before


def test_a_changed_file_changes_the_digest(app: Path) -> None:
    before = digests(app)
    (app.parent / "code" / "data" / "table.bin").write_bytes(b"\1\2\4")
    assert digests(app) != before


def test_the_packed_directory_can_be_unpacked(app: Path) -> None:
    with pack(app) as package:
        content = package.artifacts[1].content.read()
    assert len(content) == package.artifacts[1].ref.size_bytes
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert tar.getnames() == ["data/table.bin", "model.py"]
        model = tar.extractfile("model.py")
        assert model is not None
        assert model.read() == b"class Model: ...\n"


def test_variants_of_one_file_are_uploaded_once(app: Path) -> None:
    app.write_text(MANIFEST.replace('artifact = "code"', 'artifact = "large.onnx"').replace("python", "onnx"))
    with pack(app) as package:
        assert all(not artifact.content.closed for artifact in package.artifacts)
    assert all(artifact.content.closed for artifact in package.artifacts)
    assert len(package.artifacts) == 1
    assert len(package.description["variants"]) == 2


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("large.onnx", "lost.onnx"), "variants[0].artifact"),
        (('artifact = "large.onnx"', 'artifact = "code"'), "has no model.onnx"),
        (("accuracy = 0.9", "acuracy = 0.9"), "did you mean 'accuracy'?"),
        (
            ('"python"', '"pyton"'),
            "variants[1]: runtime: 'pyton' is not known; valid: onnx, python; did you mean 'python'?",
        ),
        (('name = "code"', 'name = "large"'), "'large' is used twice"),
    ],
)
def test_mistakes_are_named(app: Path, edit: tuple[str, str], message: str) -> None:
    app.write_text(MANIFEST.replace(*edit))
    with pytest.raises(UnderstudyError) as raised:
        pack(app)
    assert message in str(raised.value)
    assert str(app) in str(raised.value)


def test_a_directory_without_model_py_is_refused(app: Path) -> None:
    (app.parent / "code" / "model.py").unlink()
    with pytest.raises(UnderstudyError, match=r"has no model\.py"):
        pack(app)


def test_an_empty_artifact_is_refused(app: Path) -> None:
    (app.parent / "large.onnx").write_bytes(b"")
    with pytest.raises(UnderstudyError, match="is empty"):
        pack(app)


def test_manifests_of_a_directory(app: Path) -> None:
    root = app.parent
    (root / "other").mkdir()
    (root / "other" / "APP.toml").write_text(MANIFEST)
    (root / "second.toml").write_text(MANIFEST)
    (root / "CLUSTER.toml").write_text('nodes = [{ name = "n1", memory_mb = 100 }]')
    names = [str(path.relative_to(root)) for path in find_manifests(root)]
    assert names == ["APP.toml", "other/APP.toml", "second.toml"]
    assert find_manifests(app) == [app]


@pytest.mark.parametrize("what", ["empty", "missing"])
def test_a_place_without_manifests_is_refused(tmp_path: Path, what: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnderstudyError, match=what):
        find_manifests(tmp_path / what)


def test_a_file_with_external_data_is_packed_with_it(tmp_path: Path) -> None:
    onnx_file(tmp_path / "large.onnx", "data/w.bin")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(b"weights")
    (tmp_path / "unrelated.bin").write_bytes(b"no")
    manifest = tmp_path / "APP.toml"
    manifest.write_text(MANIFEST.split('[[variants]]\nname = "code"')[0])
    with pack(manifest) as package:
        (artifact,) = package.artifacts
        with tarfile.open(fileobj=io.BytesIO(artifact.content.read())) as tar:
            assert tar.getnames() == ["data/w.bin", "model.onnx"]
    assert (artifact.ref.format, artifact.ref.file_name) == ("tar", "large.onnx.tar")


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("w.bin", "has external data in 'w.bin', and there is no such file beside it"),
        ("../w.bin", "which is outside of its directory"),
        ("/etc/passwd", "which is outside of its directory"),
        ("link", "which is outside of its directory"),
    ],
)
def test_external_data_that_is_missing_or_elsewhere_is_refused(
    tmp_path: Path, location: str, message: str
) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "link").symlink_to("/etc/passwd")
    onnx_file(folder / "large.onnx", location)
    manifest = folder / "APP.toml"
    manifest.write_text(MANIFEST.split('[[variants]]\nname = "code"')[0])
    with pytest.raises(UnderstudyError, match=message):
        pack(manifest)


def onnx_file(path: Path, location: str) -> None:
    """A weight inside a subgraph, where exporters of loops put them."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="offset", value="0")
    weight.external_data.add(key="location", value=location)
    body = helper.make_graph([], "body", [], [], [weight])
    graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=body)], "g", [], [])
    path.write_bytes(helper.make_model(graph).SerializeToString())
