"""`python -m understudy.worker.inspection`: what can be told of a model without running it.

For `understudy check`, which may be anywhere and believes no file: a process of its own. Standard input is a
`Load` as JSON, standard output a `Found`. A model's code isn't run; ONNX Runtime reads files and makes a
session of them, which finds what it doesn't know and what isn't as the manifest says.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import msgspec

from understudy.settings.runtimes import RUNTIMES
from understudy.wire.errors import UnderstudyError
from understudy.wire.messages import Load
from understudy.wire.records import TensorSpec
from understudy.worker.raised import contain, loading_error
from understudy.worker.runtimes.contract import Axes, Runtime, options_as
from understudy.worker.runtimes.onnx import OnnxOptions, OnnxRuntime
from understudy.worker.runtimes.python import PythonRuntime, source_in
from understudy.worker.runtimes.python_source import PythonOptions, read_class
from understudy.worker.signature import agree


class Found(msgspec.Struct):
    mistakes: list[str] = []
    unknown: list[str] = []  # what wasn't looked at, and why


class _Said(PythonRuntime):
    """A class that was only read."""

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        super().__init__(1)
        self.inputs, self.outputs = inputs, outputs
        self.axes: Axes = {}


def inspect(load: Load) -> Found:
    """Whatever is wrong with it; never raises what a model causes."""
    pid = os.getpid()
    try:
        look = _LOOKS.get(load.runtime)
        return (
            look(load) if look else Found(unknown=[f"models of the {load.runtime} runtime aren't looked at"])
        )
    except UnderstudyError as error:
        return Found([error.message])
    except BaseException as error:
        contain(error, pid)
        return Found([loading_error(error, "", "the model").message.removeprefix("the model: ")])


def _of_python(load: Load) -> Found:
    options = options_as(load.options, PythonOptions, "python")
    facts = read_class(source_in(Path(load.path)), options.class_)
    found = Found(facts.mistakes, facts.unknown)
    if facts.mistakes or facts.unknown:
        return found
    for side, own, said in (
        ("inputs", facts.inputs, load.inputs),
        ("outputs", facts.outputs, load.outputs),
    ):
        if own is None and not said:
            found.unknown.append(f"which {side} the class has is known when it runs")
    if not found.unknown:
        _agree(load, _Said(facts.inputs or (), facts.outputs or ()), found)
    return found


def _of_onnx(load: Load) -> Found:
    options = options_as(load.options, OnnxOptions, "onnx")
    if importlib.util.find_spec("onnxruntime") is None:
        return Found(unknown=["the file isn't looked at: onnxruntime isn't installed here"])
    found = Found()
    if options.providers:
        found.unknown.append("the execution providers are those of the nodes")
    runtime = OnnxRuntime(1)
    brief = {**RUNTIMES["onnx"].brief_options, **load.options}
    brief.pop("providers", None)
    runtime.load(load.path, brief)
    _agree(load, runtime, found)
    return found


def _agree(load: Load, runtime: Runtime, found: Found) -> None:
    try:
        agree(load, runtime)
    except UnderstudyError as error:
        found.mistakes.append(error.message)


_LOOKS = {"python": _of_python, "onnx": _of_onnx}  # of other runtimes nothing is told


def main() -> int:
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)
    told = os.dup(1)
    os.dup2(2, 1)  # what libraries print is none of the answer
    found = inspect(load)
    with os.fdopen(told, "wb") as answer:
        answer.write(msgspec.json.encode(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
