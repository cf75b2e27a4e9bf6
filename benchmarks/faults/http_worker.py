"""A worker that answers HTTP itself, with the waiting model, for HAProxy to stand in front of: `ADDRESS`."""

from __future__ import annotations

import sys

from benchmarks.faults import accelerator
from benchmarks.faults.accelerator import NAME
from benchmarks.faults.load import NUMBERS
from benchmarks.http_worker import run
from understudy.wire.messages import Load
from understudy.wire.records import Batching, TensorSpec

INPUTS = (TensorSpec("x", "FP32", (-1, NUMBERS)),)
OUTPUTS = (
    TensorSpec("label", "INT64", (-1,)),
    TensorSpec("probabilities", "FP32", (-1, NUMBERS)),
    TensorSpec("pid", "INT64", (-1,)),
)

if __name__ == "__main__":
    load = Load(
        "r1", NAME, 1, "full", "python", accelerator.__file__, {}, INPUTS, OUTPUTS, Batching(rows_max=1)
    )
    run([load], sys.argv[1])
