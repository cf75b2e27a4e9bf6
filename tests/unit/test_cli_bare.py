"""Models without a manifest: what is written for them, and what other files are told."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from control_api import Api, serving
from typer.testing import CliRunner, Result

import onnx_graphs
from understudy.cli import kinds
from understudy.cli.app import app
from understudy.cli.exits import Exit
from understudy.cli.packing import pack
from understudy.wire.errors import UnderstudyError

ONNX = b"\x08\x08\x12\x07pytorch\x1a\x051.9.0:\xc3\x01"
SAYS = 'class Model:\n    inputs = [("x", "FP32", [-1, 4])]\n    outputs: list = [("y", "FP32", [-1, 4])]\n'
WHOLE = f"{SAYS}    def load(self, path): ...\n    def predict(self, inputs): raise SystemExit\n"


@pytest.fixture
def api() -> Iterator[Api]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(api: Api | None, *args: str) -> Result:
    return CliRunner().invoke(app, args, env={"UNDERSTUDY_URL": api.url if api else "http://127.0.0.1:1"})


def test_a_model_alone_is_deployed_and_its_manifest_shown(api: Api, folder: Path) -> None:
    (folder / "résumé model.onnx").write_bytes(ONNX)
    done = run(api, "deploy", "résumé model.onnx")
    assert done.exit_code == Exit.OK, done.stderr
    assert api.deployed[0]["name"] == "r-sum-model"
    assert api.deployed[0]["variants"][0]["runtime"] == "onnx"
    kept = done.stdout.split("is ready\n", 1)[1]
    (folder / "APP.toml").write_text(kept)
    assert run(api, "deploy", "APP.toml").exit_code == Exit.OK
    assert api.deployed[0] == api.deployed[1], "so the controller finds it unchanged"


def test_the_manifest_of_what_failed_is_nothing_to_keep(api: Api, folder: Path) -> None:
    (folder / "m.onnx").write_bytes(ONNX)
    api.states = [{"state": "failed", "message": "no such operator"}]
    done = run(api, "deploy", "m.onnx")
    assert done.exit_code == Exit.FAILED
    assert "no such operator" in done.stdout
    assert "[[variants]]" not in done.stdout
    assert "--save" not in done.stderr


@pytest.mark.parametrize("name", ["M.ONNX", "m.Onnx"])
def test_a_suffix_may_be_in_capitals(api: Api, folder: Path, name: str) -> None:
    (folder / name).write_bytes(ONNX)
    assert run(api, "deploy", name).exit_code == Exit.OK
    assert api.deployed[0]["variants"][0]["runtime"] == "onnx"


def test_a_directory_holds_one_model_of_any_name_and_its_data(api: Api, folder: Path) -> None:
    (folder / "net").mkdir()
    (folder / "net/resnet.onnx").write_bytes(ONNX)
    (folder / "net/weights.bin").write_bytes(b"w")
    done = run(api, "deploy", "net")
    assert done.exit_code == Exit.OK, done.stderr
    assert api.deployed[0]["name"] == "net"


def test_the_manifest_can_be_kept_anywhere_but_over_another_file(api: Api, folder: Path) -> None:
    (folder / "m.onnx").write_bytes(ONNX)
    (folder / "kept").mkdir()
    assert run(api, "deploy", "m.onnx", "--save", "kept/APP.toml").exit_code == Exit.OK
    with pack(Path("kept/APP.toml")) as package:
        assert json.loads(json.dumps(package.description)) == api.deployed[0]
    again = run(api, "deploy", "m.onnx", "--save", "kept/APP.toml")
    assert again.exit_code == Exit.USAGE
    assert "--save: kept/APP.toml can't be written: File exists" in again.stderr


def test_several_models_are_variants_of_one_app_the_largest_first(api: Api, folder: Path) -> None:
    for name, size in (("digits-s.onnx", 0), ("digits-l.onnx", 900), ("other/digits-s.onnx", 90)):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(ONNX + b"\xff" * size)
    paths = ("digits-s.onnx", "digits-l.onnx", "other/digits-s.onnx")
    assert run(api, "deploy", *paths).exit_code == Exit.OK
    (deployed,) = api.deployed
    told = [(v["name"], v["accuracy"]) for v in deployed["variants"]]
    assert (deployed["name"], told) == (
        "digits",
        [("digits-l", 1.0), ("digits-s", 0.99), ("digits-s-2", 0.98)],
    )
    assert run(api, "deploy", *paths, "--name", "figures").exit_code == Exit.OK
    assert api.deployed[1]["name"] == "figures"
    (folder / "big.onnx").write_bytes(ONNX)
    refused = run(api, "deploy", "big.onnx", "digits-s.onnx")
    assert refused.exit_code == Exit.USAGE
    assert "give it with --name" in refused.stderr


def test_a_directory_with_a_class_is_deployed_if_it_says_what_it_takes(api: Api, folder: Path) -> None:
    (folder / "price").mkdir()
    (folder / "price" / "model.py").write_text("class Model:\n    def load(self, path): ...\n")
    silent = run(api, "deploy", "price")
    assert silent.exit_code == Exit.USAGE
    assert "price/model.py doesn't say what the model takes and gives" in silent.stderr
    assert 'artifact = "price"' in silent.stderr, "an example to start from"
    told = run(api, "deploy", "price", "--input", "x:FP32:-1,4", "--output", "y:INT64:-1")
    assert told.exit_code == Exit.OK, told.stderr
    assert api.deployed[0]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert api.deployed[0]["outputs"] == [{"name": "y", "datatype": "INT64", "shape": [-1]}]
    (folder / "price" / "model.py").write_text(SAYS)
    assert run(api, "deploy", "price").exit_code == Exit.OK
    assert (api.deployed[1]["name"], api.deployed[1]["variants"][0]["runtime"]) == ("price", "python")
    for wrong, says in (("x:FP33:-1", "'FP33' is not known; valid: BOOL"), ("x", "no NAME:DATATYPE:SHAPE")):
        refused = run(api, "deploy", "price", "--input", wrong, "--output", "y:FP32:-1")
        assert refused.exit_code == Exit.USAGE
        assert says in refused.stderr


def test_a_directory_of_manifests_is_what_it_was(api: Api, folder: Path) -> None:
    (folder / "app").mkdir()
    (folder / "app" / "model.py").write_text(SAYS)
    manifest = (
        'name = "kept"\n[[variants]]\nname = "v"\nruntime = "python"\nartifact = "model.py"\naccuracy = 1\n'
    )
    (folder / "app" / "APP.toml").write_text(manifest)
    assert run(api, "deploy", "app").exit_code == Exit.OK
    (folder / "app" / "manifest.txt").write_text(manifest)
    assert run(api, "deploy", "app/manifest.txt").exit_code == Exit.OK
    assert [deployed["name"] for deployed in api.deployed] == ["kept", "kept"]
    refused = run(api, "deploy", "app", "--name", "other")
    assert refused.exit_code == Exit.USAGE
    assert "are for models without a manifest" in refused.stderr


def archive(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        for name in names:
            packed.writestr(name, b"x")
    return content.getvalue()


KINDS = [
    ("m.pt", archive("m/data.pkl", "m/version"), "a PyTorch checkpoint"),
    ("m.pt", archive("m/data.pkl", "m/constants.pkl"), "a TorchScript model"),
    ("m.keras", archive("config.json", "model.weights.h5"), "a Keras model"),
    ("m.npz", archive("a.npy"), "a NumPy archive"),
    ("m.zip", archive("a.txt"), "a ZIP archive"),
    ("m.pkl", pickle.dumps({"a": 1}), "a pickle"),
    ("m.joblib", b"x\x9c123", "a joblib file"),
    ("m.h5", b"\x89HDF\r\n\x1a\n123", "an HDF5 file"),
    ("m.gguf", b"GGUF\x03", "a GGUF file"),
    ("m.safetensors", (50).to_bytes(8, "little") + b'{"a": {}}', "a safetensors file"),
    ("m.tflite", b"\x1c\0\0\0TFL3", "a TensorFlow Lite model"),
    ("m.onnx", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    ("m.onnx", gzip.compress(b"x"), "a gzip archive"),
    ("m.onnx", b"<!DOCTYPE html>", "an HTML page"),
    ("m.onnx", b"not a model", "text"),
    ("m.json", b'{"learner": 1}', "a JSON document"),
    ("m.onnx", b"", "an empty file"),
    ("m.bin", b"\x01\x02\x03\x04\x05\x06\x07\x08\x09", "nothing that is known here"),
    ("m.toml", "\ufeffname = 1".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
]


@pytest.mark.parametrize(("name", "content", "says"), KINDS, ids=[f"{k[0]}-{k[2][:14]}" for k in KINDS])
def test_what_cant_be_served_is_told_what_it_is(folder: Path, name: str, content: bytes, says: str) -> None:
    (folder / name).write_bytes(content)
    refused = run(None, "deploy", name)
    assert refused.exit_code == Exit.USAGE
    assert says in refused.stderr
    assert "toml" in refused.stderr
    assert kinds.PAGE in refused.stderr or name == "m.toml"


@pytest.mark.parametrize("name", ["m.pt", "m.pkl", "m.h5", "m.safetensors", "m.gguf"])
def test_an_artifact_of_a_manifest_is_told_what_it_is_too(folder: Path, name: str) -> None:
    (folder / name).write_bytes(next(content for known, content, _ in KINDS if known == name))
    for runtime in ("onnx", "python"):
        variant = f'{{ name = "v", runtime = "{runtime}", artifact = "{name}", accuracy = 1 }}'
        (folder / "APP.toml").write_text(f'name = "a"\nvariants = [{variant}]')
        with pytest.raises(UnderstudyError, match=rf"variants\[0\].artifact: .*/{name} is an? "):
            pack(folder / "APP.toml")


def test_special_files_and_lost_links_are_named(folder: Path) -> None:
    os.mkfifo(folder / "pipe.onnx")
    assert "pipe.onnx is a FIFO" in run(None, "deploy", "pipe.onnx").stderr
    assert kinds.describe(Path("/dev/null")) == "a device"
    gone = run(None, "deploy", "gone.onnx")
    assert f"looked at {folder}/gone.onnx" in gone.stderr.replace("\n", "")
    (folder / "code").mkdir()
    (folder / "code" / "model.py").write_text(SAYS)
    (folder / "code" / "weights.bin").symlink_to("/nowhere/at/all")
    assert (
        "weights.bin: can't be packed: it is a link that leads nowhere" in run(None, "deploy", "code").stderr
    )
    (folder / "code" / "weights.bin").unlink()
    (folder / "code" / "self").symlink_to(folder / "code")
    assert "leads into a directory that it is in" in run(None, "deploy", "code").stderr
    (folder / "empty").mkdir()
    (folder / "pickled").mkdir()
    (folder / "pickled" / "m.pkl").write_bytes(pickle.dumps({"a": 1}))
    for name in ("empty", "pickled"):
        said = run(None, "deploy", name).stderr
        assert "no manifests here, and no model" in said
        assert "model.py" in said
        assert kinds.PAGE in said
    (folder / "saved").mkdir()
    (folder / "saved" / "saved_model.pb").write_bytes(b"\x08\x01")
    assert "saved is a TensorFlow SavedModel" in run(None, "deploy", "saved").stderr


def test_links_out_of_a_directory_are_followed(folder: Path) -> None:
    (folder / "blobs" / "more").mkdir(parents=True)
    (folder / "blobs" / "w").write_bytes(b"weights")
    (folder / "blobs" / "more" / "v").write_bytes(b"vocabulary")
    (folder / "code").mkdir()
    (folder / "code" / "model.py").write_text(SAYS)
    (folder / "code" / "w").symlink_to("../blobs/w")
    (folder / "code" / "more").symlink_to("../blobs/more")
    (folder / "APP.toml").write_text(
        'name = "a"\nvariants = [{ name = "v", runtime = "python", artifact = "code", accuracy = 1 }]'
    )
    with pack(folder / "APP.toml") as package:
        content = package.artifacts[0].content.read()
        (note,) = package.notes
    assert b"weights" in content
    assert b"vocabulary" in content
    blobs = (folder / "blobs").resolve()
    assert note.endswith(f"code: more/v is {blobs / 'more' / 'v'}, w is {blobs / 'w'}"), "and it is said"


def test_check_tells_everything_that_is_wrong_without_a_cluster(folder: Path) -> None:
    (folder / "m.py").write_text(WHOLE)
    (folder / "good.toml").write_text(
        'name = "a"\nvariants = [{ name = "v", runtime = "python", artifact = "m.py", accuracy = 1 }]'
    )
    (folder / "bad.toml").write_text((folder / "good.toml").read_text().replace("accuracy", "acuracy"))
    (folder / "CLUSTER.toml").write_text('apps = ["good.toml"]\n[[nodes]]\nname = "n"\nmemory_mb = 1\n')
    good = run(None, "check", "CLUSTER.toml", "m.py")
    assert good.exit_code == Exit.OK, good.stderr
    assert "CLUSTER.toml: a cluster of 1 nodes and 1 apps" in good.stdout
    assert "good.toml: app a with v" in good.stdout
    assert 'artifact = "m.py"' in good.stdout
    assert "a deployment measures the rest" in good.stderr
    (folder / "CLUSTER.toml").write_text('[[nodes]]\nname = "n"\nmemory = 1\n')
    bad = run(None, "check", "CLUSTER.toml", "bad.toml", "good.toml", "gone.toml", "--json")
    assert bad.exit_code == Exit.USAGE
    told = json.loads(bad.stdout)
    assert len(told["good"]) == 1
    assert [text.partition(": ")[0] for text in told["bad"]] == ["CLUSTER.toml", "bad.toml", "gone.toml"]
    assert "nodes[0].memory: unknown field; did you mean 'memory_mb'?" in told["bad"][0]
    assert "did you mean 'accuracy'?" in told["bad"][1]


@pytest.mark.parametrize("text", ["[[node]]\nname = 'n'", "apps = []\nname = 'a'", "[[nodes]]\nname =="])
def test_check_knows_a_cluster_file_by_its_other_fields_too(folder: Path, text: str) -> None:
    (folder / "CLUSTER.toml").write_text(text)
    (folder / "APP.toml").write_text("accuracy = 1")
    told = json.loads(run(None, "check", "CLUSTER.toml", "APP.toml", "--json").stdout)["bad"]
    assert "variants" not in told[0]
    assert "variants" in told[1]


def checked(folder: Path, source: str, more: str = "") -> tuple[list[str], list[str]]:
    """What is bad, and what isn't known, of a Python model."""
    (folder / "m.py").write_text(source)
    (folder / "APP.toml").write_text(
        'name = "a"\nvariants = [{ name = "v", runtime = "python", '
        f'artifact = "m.py", accuracy = 1{more} }}]'
    )
    told = json.loads(run(None, "check", "APP.toml", "--json").stdout)
    begin = "APP.toml: variants[0]: m.py: "
    return [s.removeprefix(begin) for s in told["bad"]], [s.removeprefix(begin) for s in told["unknown"]]


@pytest.mark.parametrize(
    ("source", "more", "says"),
    [
        (WHOLE.replace("def load", "def laod"), "", "has no method 'load'; should 'laod' be it?"),
        (WHOLE.replace("def predict", "def answer"), "", "class 'Model' in m.py has no method 'predict'"),
        (WHOLE.replace("Model", "Mine"), "", """; for the one that it has: options = { class = "Mine" }"""),
        (WHOLE, ", options = { clas = 'Model' }", "clas: unknown field; did you mean 'class'?"),
        (WHOLE.replace("-1", "None"), "", "inputs of the class: Expected `int`, got `null`"),
        (WHOLE.replace("FP32", "float32"), "", "did you mean 'FP32'?"),
        (WHOLE.replace("inputs =", "takes ="), "", "no inputs are declared"),
        ("def f(:\n", "", "m.py is not valid Python"),
    ],
)  # fmt: skip
def test_check_reads_a_class_without_running_it(folder: Path, source: str, more: str, says: str) -> None:
    bad, unknown = checked(folder, f"open('ran', 'w')\n{source}", more)
    assert not unknown
    assert [says in each for each in bad] == [True], bad
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("source", "unknown"),
    [
        (WHOLE, ""),
        ("from elsewhere import Model\n", "m.py gets its 'Model' from elsewhere"),
        ("from elsewhere import *\n", "m.py gets its 'Model' from elsewhere"),
        (f"{SAYS.replace('Model', 'Model(Other)')}", ""),
        (WHOLE.replace('[("x"', 'made() + [("x"'), "which inputs the class has is known when it runs"),
        (
            WHOLE.replace("inputs = ", "def __init__(self): self.inputs = "),
            "which inputs the class has is known when it runs",
        ),
    ],
)
def test_check_says_what_it_cant_tell_of_a_class(folder: Path, source: str, unknown: str) -> None:
    bad, told = checked(folder, source)
    assert not bad
    assert [unknown in each for each in told] == ([True] if unknown else [])


def test_check_looks_into_onnx_files(folder: Path) -> None:
    """In another process, whose end is no end of this one."""
    x, y = (
        onnx_graphs.value("x", onnx_graphs.FLOAT, ["n", 4]),
        onnx_graphs.value("y", onnx_graphs.FLOAT, None),
    )
    onnx_graphs.save(folder / "m.onnx", [onnx_graphs.node("Relu", ["x"], ["y"])], [x], [y])
    onnx_graphs.save(folder / "odd.onnx", [onnx_graphs.node("Frobnicate", ["x"], ["y"])], [x], [y])
    newer = onnx.load(folder / "m.onnx")
    newer.opset_import[0].version = 99
    onnx.save(newer, folder / "newer.onnx")
    cases = {
        "m.onnx": ("x", "[-1, 4]", ""),
        "m.onnx ": ("z", "[-1, 4]", "the model has no input 'z'; it has x"),
        "m.onnx  ": ("x", "[-1, 5]", "the model has FP32 [-1,4]"),
        "odd.onnx": ("x", "[-1, 4]", "Frobnicate"),
        "newer.onnx": ("x", "[-1, 4]", "the file has opset 99 of ai.onnx, ONNX Runtime "),
    }
    for file, (name, shape, says) in cases.items():
        (folder / "APP.toml").write_text(
            f'name = "a"\ninputs = [{{ name = "{name}", datatype = "FP32", shape = {shape} }}]\n'
            f'variants = [{{ name = "v", runtime = "onnx", artifact = "{file.strip()}", accuracy = 1 }}]'
        )
        done = run(None, "check", "APP.toml")
        assert done.exit_code == (Exit.USAGE if says else Exit.OK), done.stderr
        assert says in done.stderr
