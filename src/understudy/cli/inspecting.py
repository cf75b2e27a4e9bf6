"""Models as far as they can be judged on this machine, each in a process that may crash or hang."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from understudy.settings.manifest import AppManifest, VariantManifest
from understudy.wire.messages import Load
from understudy.wire.records import TensorSpec

INSPECTION_TIMEOUT_S = 60.0
STDERR_CHARS_MAX = 300


class Inspected(msgspec.Struct):
    """As the process tells it; see worker/inspection.py."""

    mistakes: list[str] = []
    unknown: list[str] = []


def inspect(manifest: AppManifest, variant: VariantManifest, path: Path) -> Inspected:
    """`path`: the variant's artifact, which is known to be there."""
    outputs = manifest.all_outputs
    load = Load(
        "check",
        manifest.name,
        0,
        variant.name,
        variant.runtime,
        str(path.absolute()),
        options=variant.options,
        inputs=msgspec.convert(msgspec.to_builtins(manifest.inputs), tuple[TensorSpec, ...]),
        outputs=msgspec.convert(msgspec.to_builtins(outputs.tensors), tuple[TensorSpec, ...]),
        finite=outputs.finite,
    )
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "understudy.worker.inspection"],
            input=msgspec.json.encode(load),
            capture_output=True,
            timeout=INSPECTION_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Inspected(unknown=[f"it isn't read within {INSPECTION_TIMEOUT_S:g} s"])
    if done.returncode < 0:
        return Inspected(mistakes=[f"reading it ends the process with signal {-done.returncode}"])
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-STDERR_CHARS_MAX:]
        return Inspected(unknown=[f"it can't be read here: {said}"])
    return msgspec.json.decode(done.stdout, type=Inspected)
