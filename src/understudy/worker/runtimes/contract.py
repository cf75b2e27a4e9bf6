"""What a runtime is to the worker, and what runtimes share.

A runtime says what the model's own signature is and maps named arrays to named arrays. Checks of what goes
in and comes out, batching and threads are not its business. Its exceptions are the model's failures.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import msgspec

from understudy.config import explain
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.records import TensorSpec
from understudy.wire.tensors import Array
from understudy.worker.inputs import Parameters

T = TypeVar("T")
Axes = dict[str, tuple[str, ...]]  # input -> names of its dimensions, "" for one without


class Runtime(Protocol):
    """`inputs` and `outputs` are what the model says of itself, complete from the first `predict` on.

    `described`: whether it says anything. `axes` names the dimensions of its inputs that should have equal
    lengths where their names are equal. `notes` tells who deploys it what can't be served, or is otherwise
    than in the file.

    `load` may raise anything. `predict` may keep or change the arrays it is given, returns at least the
    declared outputs, and is called by one thread at a time: by any, unless the runtime wants `own_thread`.
    Then that is the process's main thread, for everything from `load` to `unload`.
    """

    own_thread: bool
    source: str  # path of the model's own code, whose lines are named when it fails; empty: it has none
    takes_parameters: bool  # of a request
    inputs: tuple[TensorSpec, ...]
    described: bool
    axes: Axes
    notes: tuple[str, ...]

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def load(self, path: str, options: dict[str, Any]) -> None: ...

    def predict(self, inputs: dict[str, Array], parameters: Parameters | None = None) -> dict[str, Array]: ...

    def unload(self) -> None:
        """The last call, if the process ends in good order."""


def load_failed(what: str) -> UnderstudyError:
    return UnderstudyError(Code.LOAD_FAILED, what)


def options_as(options: dict[str, Any], type_: type[T], runtime: str) -> T:
    try:
        return msgspec.convert(options, type_)
    except msgspec.ValidationError as error:
        raise load_failed(f"options of the {runtime} runtime: {explain(str(error), type_)}") from error
