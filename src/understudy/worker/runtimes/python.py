"""Models that are Python classes."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import os
import sys
import sysconfig
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from understudy.wire.records import TensorSpec
from understudy.wire.tensors import Array
from understudy.worker.inputs import Parameters
from understudy.worker.runtimes.contract import Axes, load_failed, options_as
from understudy.worker.runtimes.python_source import METHODS, PythonOptions, declared, no_class, no_method

# The file of this name runs the same code in processes that a model starts afresh, as pools do.
_MODULE = "understudy.worker.model_source"
_SOURCE = "UNDERSTUDY_MODEL_SOURCE"


class PythonRuntime:
    """A class with `load(path)` and `predict(inputs) -> outputs`, from a file or a directory's model.py.

    `load` is called once with the path of the artifact. The file's directory is importable, so a
    directory may hold further modules and data. One model per process: the module name is fixed. The class
    may say what it takes and gives in `inputs` and `outputs`, each a list of (name, datatype, shape).

    Both may be `async def`; they run on a loop that the model has for itself, one call at a time. `predict`
    gets the request's parameters if it has an argument of that name. A method `unload` is called at the end.
    """

    own_thread = True

    def __init__(self, threads: int) -> None:
        del threads  # it makes its own
        self.source = ""
        self.takes_parameters = False
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self.described = False
        self.axes: Axes = {}
        self.notes: tuple[str, ...] = ()
        self._model: Any = None
        self._predict: Callable[..., Any]
        self._runner: asyncio.Runner | None = None  # of the model's coroutines, once it had one

    def load(self, path: str, options: dict[str, Any]) -> None:
        wanted = options_as(options, PythonOptions, "python")
        source = source_in(Path(path))
        self.source = path
        module = _import_file(source)
        class_ = getattr(module, wanted.class_, None)
        if not isinstance(class_, type):
            raise load_failed(no_class(source.name, wanted.class_, _classes(module)))
        for method in METHODS:
            if not callable(getattr(class_, method, None)):
                raise load_failed(no_method(source.name, wanted.class_, method, vars(class_)))
        model: Any = class_()
        self.inputs = declared(getattr(model, "inputs", None), "inputs")
        self.outputs = declared(getattr(model, "outputs", None), "outputs")
        self._result_of(model.load(path))
        self._model = model
        self._predict = model.predict
        self.takes_parameters = _takes_parameters(model.predict)

    def predict(self, inputs: dict[str, Array], parameters: Parameters | None = None) -> dict[str, Array]:
        if self.takes_parameters:
            outputs = self._predict(inputs, parameters=dict(parameters or {}))
        else:
            outputs = self._predict(inputs)
        return outputs if type(outputs) is dict else self._result_of(outputs)

    def unload(self) -> None:
        unload = getattr(self._model, "unload", None)
        if unload is not None:
            self._result_of(unload())
        if self._runner is not None:
            self._runner.close()

    def _result_of(self, returned: Any) -> Any:
        if not inspect.iscoroutine(returned):
            return returned
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(returned)


def _takes_parameters(predict: Callable[..., Any]) -> bool:
    try:
        argument = inspect.signature(predict).parameters.get("parameters")
    except (TypeError, ValueError):  # not written in Python
        return False
    return argument is not None and argument.kind in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY)


def source_in(artifact: Path) -> Path:
    source = artifact / "model.py" if artifact.is_dir() else artifact
    if not source.is_file():
        raise load_failed(f"{source}: no such file; the python runtime needs model.py or one .py file")
    return source


def _classes(module: Any) -> list[str]:
    """Those that were written there."""
    return [
        name
        for name, each in vars(module).items()
        if isinstance(each, type) and each.__module__ == _MODULE and not name.startswith("_")
    ]


def _after_standard_library() -> int:
    """Where the model's own modules go: before those that are installed, and after those that are imported
    by whatever is used, at any later time: a `statistics.py` beside the model is none of theirs.
    """
    standard = {sysconfig.get_path("stdlib"), str(Path(sysconfig.get_path("stdlib")) / "lib-dynload")}
    return max((index + 1 for index, each in enumerate(sys.path) if each in standard), default=0)


def _import_file(source: Path) -> Any:
    # Artifacts are verified by digest: bytecode must not be written beside them.
    sys.dont_write_bytecode = True
    folder = str(source.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(_after_standard_library(), folder)
    os.environ[_SOURCE] = str(source.resolve())
    loader = SourceFileLoader(_MODULE, str(source))
    spec = importlib.util.spec_from_loader(_MODULE, loader)
    if spec is None:
        raise load_failed(f"{source} can't be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module  # before it runs, as dataclasses and pickle expect
    loader.exec_module(module)
    return module
