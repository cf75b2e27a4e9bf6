"""Models that are Python classes."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import msgspec

from understudy.wire.records import TensorSpec
from understudy.wire.tensors import Array
from understudy.worker.runtimes.contract import load_failed, options_as

_MODULE = "_understudy_model"


class _PythonOptions(msgspec.Struct, forbid_unknown_fields=True):
    class_: str = msgspec.field(default="Model", name="class")


class PythonRuntime:
    """A class with `load(path)` and `predict(inputs) -> outputs`, from a file or a directory's model.py.

    `load` is called once with the path of the artifact. The file's directory is importable, so a
    directory may hold further modules and data. One model per process: the module name is fixed. The class
    may say what it takes and gives in `inputs` and `outputs`, each a list of (name, datatype, shape).
    """

    def __init__(self, threads: int) -> None:
        del threads  # it makes its own
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self._predict: Callable[[dict[str, Array]], dict[str, Array]]

    def load(self, path: str, options: dict[str, Any]) -> None:
        wanted = options_as(options, _PythonOptions, "python")
        artifact = Path(path)
        source = artifact / "model.py" if artifact.is_dir() else artifact
        if not source.is_file():
            raise load_failed(f"{source}: no such file; the python runtime needs model.py or one .py file")
        module = _import_file(source)
        class_ = getattr(module, wanted.class_, None)
        if not isinstance(class_, type):
            raise load_failed(f"{source.name} has no class {wanted.class_!r}")
        for method in ("load", "predict"):
            if not callable(getattr(class_, method, None)):
                raise load_failed(f"class {wanted.class_!r} in {source.name} has no method {method!r}")
        model: Any = class_()
        self.inputs, self.outputs = _declared(model, "inputs"), _declared(model, "outputs")
        model.load(path)
        self._predict = model.predict

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        return self._predict(inputs)


def _declared(model: Any, side: str) -> tuple[TensorSpec, ...]:
    """What a class says of itself: `inputs = [("x", "FP32", [-1, 4])]`. A manifest may say it instead."""
    said = getattr(model, side, None)
    if not isinstance(said, list | tuple):
        return ()  # of another use
    try:
        return tuple(TensorSpec(*msgspec.convert(each, tuple[str, str, tuple[int, ...]])) for each in said)
    except msgspec.ValidationError as error:
        raise load_failed(f'{side} of the class: {error}; such as [("x", "FP32", [-1, 4])]') from error


def _import_file(source: Path) -> Any:
    # Artifacts are verified by digest: bytecode must not be written beside them.
    sys.dont_write_bytecode = True
    folder = str(source.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    loader = SourceFileLoader(_MODULE, str(source))
    spec = importlib.util.spec_from_loader(_MODULE, loader)
    if spec is None:
        raise load_failed(f"{source} can't be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module  # before it runs, as dataclasses and pickle expect
    loader.exec_module(module)
    return module
