"""A runtime is an entry and a module: nothing else knows of it."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from understudy.cli.packing import pack
from understudy.settings.runtimes import RUNTIMES, RuntimeFacts, facts_of
from understudy.wire.messages import Load
from understudy.wire.records import TensorSpec
from understudy.wire.tensors import Array
from understudy.worker.model import load_model
from understudy.worker.runtimes.onnx import OnnxRuntime
from understudy.worker.runtimes.python import PythonRuntime


def test_each_entry_names_its_class() -> None:
    classes = {}
    for name, facts in RUNTIMES.items():
        module, _, class_ = facts.implementation.partition(":")
        classes[name] = getattr(import_module(module), class_)
    assert classes == {"onnx": OnnxRuntime, "python": PythonRuntime}


def test_which_file_of_a_directory_is_the_model() -> None:
    facts = RUNTIMES["onnx"]
    assert facts.entry_in(["a.onnx", "model.onnx"]) == "model.onnx"
    assert facts.entry_in(["a.onnx", "a.onnx.data"]) == "a.onnx"
    assert facts.entry_in(["a.onnx", "b.onnx"]) is None
    assert RUNTIMES["python"].entry_in(["other.py"]) is None


def test_a_runtime_of_a_newer_version_goes_by_its_own_name() -> None:
    facts = facts_of("abacus")
    assert {facts.platform, facts.triton_platform, facts.triton_backend} == {"abacus"}
    assert facts_of("onnx") is RUNTIMES["onnx"]


class Scale:
    """Multiplies by the number in its file."""

    own_thread = False
    source = ""
    takes_parameters = False
    described = True
    axes: dict[str, tuple[str, ...]] = {}  # noqa: RUF012
    notes: tuple[str, ...] = ()
    inputs = (TensorSpec("x", "FP32", (-1,)),)
    outputs = (TensorSpec("y", "FP32", (-1,)),)

    def __init__(self, threads: int) -> None:
        self.factor = float(threads)

    def load(self, path: str, options: dict[str, Any]) -> None:
        self.factor = float(Path(path).read_text())

    def predict(self, inputs: dict[str, Array], parameters: Any = None) -> dict[str, Array]:
        return {"y": inputs["x"] * self.factor}

    def unload(self) -> None:
        pass


def test_a_new_runtime_touches_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("toy_runtime")
    module.Scale = Scale  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_runtime", module)
    monkeypatch.setitem(RUNTIMES, "scale", RuntimeFacts("toy_runtime:Scale", "factor.txt", ".txt"))
    (tmp_path / "three.txt").write_text("3")
    manifest = tmp_path / "APP.toml"
    manifest.write_text(
        'name = "toy"\n[[variants]]\nname = "v"\nruntime = "scale"\nartifact = "three.txt"\naccuracy = 1.0\n'
    )
    with pack(manifest) as package:
        assert package.artifacts[0].content.read() == b"3"
    model, loaded = load_model(Load("r", "toy", 1, "v", "scale", str(tmp_path / "three.txt")), 1)
    assert loaded.inputs == Scale.inputs
    body = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}]}'
    (done,) = model.execute([model.codec.decode(body)])
    assert done.outputs is not None
    assert done.outputs["y"].tolist() == [3, 6]
