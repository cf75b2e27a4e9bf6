"""What there is to know of each runtime without loading it: one entry each, read by every room that differs.

The code that runs models is named here and imported by workers alone: see docs/adding-a-runtime.md.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple


class RuntimeFacts(NamedTuple):
    """`implementation` and `data_files` are "module:name"."""

    implementation: str  # a class: see worker/runtimes/contract.py
    entry: str  # the file that an artifact is, or that a directory must hold
    suffix: str  # a directory's only file of this suffix does as well; empty: none but `entry`
    data_files: str = ""  # function: path of a file -> paths beside it, relative, without which it is nothing
    preload: tuple[str, ...] = ()  # modules that take long to import; where they are installed
    brief_options: dict[str, Any] = {}  # noqa: RUF012 - for a load that somebody waits for
    platform: str = ""  # a name of the protocol's list
    triton_platform: str = ""
    triton_backend: str = ""

    def entry_in(self, names: Iterable[str]) -> str | None:
        """Which of a directory's files is the model."""
        found = [name for name in names if name == self.entry or (self.suffix and name.endswith(self.suffix))]
        return self.entry if self.entry in found else found[0] if len(found) == 1 else None


RUNTIMES: dict[str, RuntimeFacts] = {
    "onnx": RuntimeFacts(
        implementation="understudy.worker.runtimes.onnx:OnnxRuntime",
        entry="model.onnx",
        suffix=".onnx",
        data_files="understudy.adapters.onnx_files:data_files",
        preload=("onnxruntime",),
        # Measured: 30 to 60 % of the time to load, 1 to 3 times that of an inference.
        brief_options={"optimization": "basic"},
        platform="onnx_onnxv1",
        triton_platform="onnxruntime_onnx",
        triton_backend="onnxruntime",
    ),
    "python": RuntimeFacts(
        implementation="understudy.worker.runtimes.python:PythonRuntime",
        entry="model.py",
        suffix="",
        platform="python",
        triton_platform="python",
        triton_backend="python",
    ),
}


def facts_of(name: str) -> RuntimeFacts:
    """Of any runtime: one that only a newer version knows is called what it is called, everywhere."""
    return RUNTIMES.get(name) or RuntimeFacts(
        "", "", "", platform=name, triton_platform=name, triton_backend=name
    )


def check_runtime(name: str) -> None:
    """Raises `ValueError` unless it is the name of one."""
    if name not in RUNTIMES:
        near = difflib.get_close_matches(name, RUNTIMES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"runtime: {name!r} is not known; valid: {', '.join(RUNTIMES)}{hint}")
