"""ONNX files in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from understudy.wire.errors import InvalidArgument
from understudy.wire.records import TensorSpec
from understudy.wire.tensors import Array
from understudy.worker.inputs import Parameters
from understudy.worker.runtimes.contract import load_failed, options_as

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"

# Element types as ONNX Runtime prints them. bfloat16 is missing: NumPy arrays can't carry it.
_ONNX_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class _OnnxOptions(msgspec.Struct, forbid_unknown_fields=True):
    threads: int | None = None  # of one inference; None: the worker's setting
    providers: tuple[str, ...] = ()  # in order of preference; empty: CUDA where present, then CPU
    optimization: Literal["basic", "extended", "all"] = "all"  # of the graph: less of it loads faster


class OnnxRuntime:
    """An ONNX file in ONNX Runtime: one inference at a time, threads that don't spin between inferences."""

    own_thread = False  # a session doesn't care, and some take less time than a hop
    source = ""
    takes_parameters = False

    def __init__(self, threads: int) -> None:
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self._threads = threads
        self._names: list[str] = []
        self._text_inputs: list[str] = []
        self._run: Callable[[list[str], dict[str, Array]], list[Array]]

    def load(self, path: str, options: dict[str, Any]) -> None:
        try:
            import onnxruntime as ort  # an extra, and slow to import; a zygote has done it already
        except ImportError as error:
            raise load_failed(f"the onnx runtime needs 'understudy[onnx]' installed: {error}") from error

        wanted = options_as(options, _OnnxOptions, "onnx")
        providers = _providers(wanted.providers, ort.get_available_providers())
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = wanted.threads or self._threads
        settings.inter_op_num_threads = 1
        settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        level = f"ORT_ENABLE_{wanted.optimization.upper()}"
        settings.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        settings.log_severity_level = 3  # errors only, which are raised as well
        session = ort.InferenceSession(path, settings, providers=providers)
        # A provider that can't start is dropped by ONNX Runtime without an exception.
        if _CPU not in providers and not set(providers) & set(session.get_providers()):
            raise load_failed(f"{providers[0]} could not start; list {_CPU} too to fall back to it")
        self.inputs = tuple(_onnx_spec(value, "input") for value in session.get_inputs())
        # Maps and sequences, as classifiers exported with `zipmap` have, are never asked for.
        tensors = [value for value in session.get_outputs() if value.type in _ONNX_DATATYPES]
        self.outputs = tuple(_onnx_spec(value, "output") for value in tensors)
        self._names = [value.name for value in tensors]
        self._text_inputs = [spec.name for spec in self.inputs if spec.datatype == "BYTES"]
        self._run = session.run

    def predict(self, inputs: dict[str, Array], parameters: Parameters | None = None) -> dict[str, Array]:
        for name in self._text_inputs:
            # ONNX Runtime would make text of the Python literal: "b'\\xff'".
            if any(isinstance(element, bytes) for element in inputs[name].ravel().tolist()):
                raise InvalidArgument(f"input {name!r}: an ONNX model takes text, and this is not UTF-8")
        names = self._names
        return dict(zip(names, self._run(names, inputs), strict=True))

    def unload(self) -> None:
        pass


def _providers(asked: tuple[str, ...], available: list[str]) -> list[str]:
    """Those of `asked` that are there. Raises LOAD_FAILED for a missing one unless the CPU may replace it."""
    if not asked:
        return [name for name in (_CUDA, _CPU) if name in available]
    missing = [name for name in asked if name not in available]
    if missing and _CPU not in asked:
        known = ", ".join(available)
        raise load_failed(f"execution provider {missing[0]} is not available here; available: {known}")
    return [name for name in asked if name in available]


def _onnx_spec(value: Any, what: str) -> TensorSpec:
    datatype = _ONNX_DATATYPES.get(value.type)
    if datatype is None:
        raise load_failed(f"{what} {value.name!r} of the model is a {value.type}, which can't be served")
    # A dimension without a fixed length is a name or None.
    shape = tuple(length if isinstance(length, int) and length >= 0 else -1 for length in value.shape)
    return TensorSpec(value.name, datatype, shape)
