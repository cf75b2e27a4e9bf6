"""What runs a model: one module for each runtime, known here by its name."""

from __future__ import annotations

from collections.abc import Callable

from understudy.worker.runtimes.contract import Runtime, load_failed
from understudy.worker.runtimes.onnx import OnnxRuntime
from understudy.worker.runtimes.python import PythonRuntime

RUNTIMES: dict[str, Callable[[int], Runtime]] = {"onnx": OnnxRuntime, "python": PythonRuntime}


def make_runtime(name: str, threads: int) -> Runtime:
    """A runtime with nothing loaded. `threads` is for one inference. Raises LOAD_FAILED."""
    if name not in RUNTIMES:
        raise load_failed(f"unknown runtime {name!r}; known: {', '.join(RUNTIMES)}")
    return RUNTIMES[name](threads)
