"""ONNX files in ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec

from understudy.settings.runtimes import RUNTIMES
from understudy.wire.errors import InvalidArgument
from understudy.wire.records import TensorSpec
from understudy.wire.tensors import Array
from understudy.worker.inputs import Parameters
from understudy.worker.runtimes.contract import Axes, load_failed, options_as
from understudy.worker.runtimes.onnx_values import Maps, from_bf16, maps_of, run_to_bf16, tensor_spec

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_REFUSAL = "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : "  # before what is of use to a caller
REFUSAL_CHARS_MAX = 500
# What helps stands at the end of 600 characters.
_NEWER = re.compile(r"Opset (\d+) is under development.* for domain (\S+) is till opset (\d+)", re.DOTALL)


class OnnxOptions(msgspec.Struct, forbid_unknown_fields=True):
    threads: int | None = None  # of one inference; None: the worker's setting
    providers: tuple[str, ...] = ()  # in order of preference; empty: CUDA where present, then CPU
    optimization: Literal["basic", "extended", "all"] = "all"  # of the graph: less of it loads faster


class OnnxRuntime:
    """An ONNX file in ONNX Runtime: one inference at a time, threads that don't spin between inferences.

    Its artifact is a file, or a directory with model.onnx (or one other .onnx) and the data that it names.
    """

    own_thread = False  # a session doesn't care, and some take less time than a hop
    source = ""
    takes_parameters = False

    def __init__(self, threads: int) -> None:
        self.inputs: tuple[TensorSpec, ...] = ()
        self.described = True
        self.axes: Axes = {}
        self.notes: tuple[str, ...] = ()
        self._threads = threads
        self._outputs: dict[str, TensorSpec | Maps] = {}
        self._maps: list[tuple[str, Maps]] = []
        self._names: list[str] = []
        self._text_inputs: list[str] = []
        self._refusal: type[Exception]
        self._run: Callable[[list[str], dict[str, Array]], list[Array]]

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(found.spec if isinstance(found, Maps) else found for found in self._outputs.values())

    def load(self, path: str, options: dict[str, Any]) -> None:
        try:
            import onnxruntime as ort  # an extra, and slow to import; a zygote has done it already
            from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument as Refusal
        except ImportError as error:
            raise load_failed(f"the onnx runtime needs 'understudy[onnx]' installed: {error}") from error

        wanted = options_as(options, OnnxOptions, "onnx")
        providers = _providers(wanted.providers, ort.get_available_providers())
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = wanted.threads or self._threads
        settings.inter_op_num_threads = 1
        settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        level = f"ORT_ENABLE_{wanted.optimization.upper()}"
        settings.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        settings.log_severity_level = (
            4  # errors are raised as well, and a client could fill the log with them
        )
        try:
            session = ort.InferenceSession(model_file(Path(path)), settings, providers=providers)
        except Exception as error:
            if newer := _NEWER.search(str(error)):
                opset, domain, known = newer.groups()
                raise load_failed(
                    f"the file has opset {opset} of {domain}, ONNX Runtime {ort.__version__} knows {known}: "
                    f"export it with opset {known}, or upgrade onnxruntime"
                ) from error
            raise
        # A provider that can't start is dropped by ONNX Runtime without an exception.
        if _CPU not in providers and not set(providers) & set(session.get_providers()):
            raise load_failed(f"{providers[0]} could not start; list {_CPU} too to fall back to it")
        self._refusal = Refusal
        self._describe(session)
        self._run = self._runner(session, ort)

    def _runner(self, session: Any, ort: Any) -> Callable[[list[str], dict[str, Array]], list[Array]]:
        """`session.run`, and around it what NumPy's lack of bfloat16 takes."""
        run: Callable[[list[str], dict[str, Any]], list[Array]] = session.run
        if any(spec.datatype == "BF16" for spec in self.outputs):
            run = partial(run_to_bf16, session, ort)
        bf16 = [spec.name for spec in self.inputs if spec.datatype == "BF16"]
        if not bf16:
            return run

        def run_from_bf16(names: list[str], inputs: dict[str, Array]) -> list[Array]:
            return run(
                names, inputs | {name: from_bf16(ort, inputs[name]) for name in bf16 if name in inputs}
            )

        return run_from_bf16

    def _describe(self, session: Any) -> None:
        needed = session.get_inputs()
        values = [*needed, *session.get_overridable_initializers()]
        specs = [tensor_spec(value, optional=index >= len(needed)) for index, value in enumerate(values)]
        for value, spec in zip(values, specs, strict=True):
            if spec is None:
                raise load_failed(f"input {value.name!r} is a {value.type}, which can't be served")
        self.inputs = tuple(spec for spec in specs if spec is not None)
        self.axes = {
            value.name: tuple(length if isinstance(length, str) else "" for length in value.shape)
            for value in values
        }
        left_out = []
        for value in session.get_outputs():
            found = tensor_spec(value, output=True) or maps_of(value)
            if found is None:
                what = f"output {value.name!r} is a {value.type}, which can't be served"
                left_out.append(f"{what}, and is left out; to have it, export it as a tensor")
            else:
                self._outputs[value.name] = found
        if not self._outputs:
            raise load_failed("the model has no output that can be served: " + "; ".join(left_out))
        self._names = list(self._outputs)
        self._maps = [(name, found) for name, found in self._outputs.items() if isinstance(found, Maps)]
        self._text_inputs = [spec.name for spec in self.inputs if spec.datatype == "BYTES"]
        self.notes = (*left_out, *(maps.note for _, maps in self._maps))

    def predict(self, inputs: dict[str, Array], parameters: Parameters | None = None) -> dict[str, Array]:
        for name in self._text_inputs:
            # ONNX Runtime would make text of the Python literal: "b'\\xff'".
            if name in inputs and any(
                isinstance(element, bytes) for element in inputs[name].ravel().tolist()
            ):
                raise InvalidArgument(f"input {name!r}: an ONNX model takes text, and this is not UTF-8")
        names = self._names
        try:
            outputs = dict(zip(names, self._run(names, inputs), strict=True))
        except self._refusal as error:
            words = " ".join(str(error).removeprefix(_REFUSAL).split())
            raise InvalidArgument(f"ONNX Runtime: {words[:REFUSAL_CHARS_MAX]}") from error
        for name, maps in self._maps:
            outputs[name] = maps.read(outputs[name])
        return outputs

    def unload(self) -> None:
        pass


def model_file(path: Path) -> Path:
    """The file itself, or the model in a directory. Raises LOAD_FAILED without one, or with several."""
    if not path.is_dir():
        return path
    entry = RUNTIMES["onnx"].entry_in(file.name for file in path.iterdir())
    if entry is None:
        raise load_failed("the artifact is a directory without a model.onnx or just one other .onnx")
    return path / entry


def _providers(asked: tuple[str, ...], available: list[str]) -> list[str]:
    """Those of `asked` that are there. Raises LOAD_FAILED for a missing one unless the CPU may replace it."""
    if not asked:
        return [name for name in (_CUDA, _CPU) if name in available]
    missing = [name for name in asked if name not in available]
    if missing and _CPU not in asked:
        known = ", ".join(available)
        raise load_failed(f"execution provider {missing[0]} is not available here; available: {known}")
    return [name for name in asked if name in available]
