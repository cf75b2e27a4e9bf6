"""A loaded model: from a `Load` message to a runtime that is known to work, and its execution.

`load_model` blocks and runs in the main thread, and so does `Model.execute` if the runtime wants that; else
it may run on the loop. Nothing here touches the loop.
"""

from __future__ import annotations

import gc
import os
import statistics
from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np

from understudy.adapters.memory import pss_mb
from understudy.wire.errors import UnderstudyError
from understudy.wire.messages import Load, Loaded
from understudy.wire.tensors import Array
from understudy.worker.guard import Guard
from understudy.worker.oip import Request, encode_probe
from understudy.worker.raised import contain, describe, loading_error, model_error
from understudy.worker.runtimes import make_runtime
from understudy.worker.runtimes.contract import Runtime, load_failed
from understudy.worker.signature import Signature, agree

try:
    from understudy.worker.protobuf import Codec
except ModuleNotFoundError:  # protobuf is an extra
    from understudy.worker.oip import Codec  # type: ignore[assignment]

WARM_RUNS = 4
WARM_MS_MAX = 4.0  # spent on them at most


class Done(NamedTuple):
    """Outcome of requests that ran together: `outputs` of `rows` rows, or the `error` of all of them."""

    requests: Sequence[Request]
    rows: int
    outputs: dict[str, Array] | None
    error: UnderstudyError | None


class Model:
    """Runtime, codec and guard of one replica. `batched`: requests may be concatenated along dimension 0."""

    def __init__(self, load: Load, runtime: Runtime, signature: Signature) -> None:
        self.inputs = signature.inputs
        self.outputs = signature.outputs
        self.batched = signature.batched
        self.own_thread = runtime.own_thread
        self._unload = runtime.unload
        self.codec = Codec(load.app, load.version, self.inputs, self.outputs, batched=self.batched)
        self.codec.keeps_parameters = runtime.takes_parameters
        self._source = runtime.source
        self._pid = os.getpid()
        self._guard = Guard(self.outputs, batched=self.batched)
        self._predict = runtime.predict
        self.probe = encode_probe(load.probe, self.inputs)
        self.probe_s = 0.0  # shortest inference on the probe; measured by `load_model`

    def execute(self, requests: Sequence[Request]) -> list[Done]:
        """Run `requests` as one batch; if that fails, one by one, so that only the guilty one fails."""
        if len(requests) == 1:
            return [self._execute_one(requests[0])]
        rows = sum(request.rows for request in requests)
        try:
            inputs = {
                name: np.concatenate([request.inputs[name] for request in requests])
                for name in requests[0].inputs
            }
            outputs = self._guard.accept(self._predict(inputs, requests[0].parameters), inputs, rows)
        except BaseException as error:
            contain(error, self._pid)
            return [self._execute_one(request) for request in requests]
        return [Done(requests, rows, outputs, None)]

    def unload(self) -> str:
        """The model's last call; what it raised, or nothing."""
        try:
            self._unload()
        except BaseException as error:
            contain(error, self._pid)
            return describe(error)
        return ""

    def _execute_one(self, request: Request) -> Done:
        inputs = request.inputs
        rows = request.rows
        try:
            outputs = self._guard.accept(self._predict(inputs, request.parameters), inputs, rows)
        except BaseException as error:
            contain(error, self._pid)
            return Done((request,), rows, None, model_error(error, self._source))
        return Done((request,), rows, outputs, None)


def load_model(load: Load, threads: int) -> tuple[Model, Loaded]:
    """Create the runtime and prove by a real inference that it works. Raises LOAD_FAILED, OUT_OF_MEMORY.

    `load_ms` lasts until the first inference is done. Memory is read only when the variant is being
    profiled: it takes some milliseconds, and somebody may be waiting for this replica.
    """
    profiling = load.measure_latency_runs > 1
    runtime: Runtime | None = None
    pid = os.getpid()
    try:
        base_mb = pss_mb() if profiling else 0.0
        started_s = perf_counter()
        runtime = make_runtime(load.runtime, threads)
        runtime.load(load.path, load.options)
        model = Model(load, runtime, agree(load, runtime))
        latencies_ms = [_rehearse(model)]
        load_ms = (perf_counter() - started_s) * 1000
        latencies_ms += [_rehearse(model) for _ in range(load.measure_latency_runs - 1)]
        median_ms = statistics.median(latencies_ms)
        model.probe_s = _warm_latency_s(model, min(latencies_ms))
        memory_mb = max(0.0, pss_mb() - base_mb) if profiling else 0.0
    except BaseException as error:
        contain(error, pid)
        raise loading_error(error, runtime.source if runtime else "", f"{load.app}/{load.variant}") from None
    # What is alive now stays alive: later collections needn't look at it.
    gc.freeze()
    return model, Loaded(load_ms, latencies_ms[0], median_ms, base_mb, memory_mb, model.inputs, model.outputs)


def _warm_latency_s(model: Model, latency_ms: float) -> float:
    """The first inference may take a hundred times as long as those that follow, if they are short."""
    if latency_ms * WARM_RUNS < WARM_MS_MAX:
        latency_ms = min(latency_ms, *(_rehearse(model) for _ in range(WARM_RUNS)))
    return latency_ms / 1000


def _rehearse(model: Model) -> float:
    """One inference on the probe, decoded and encoded like any request. Returns its milliseconds."""
    try:
        request = model.codec.decode(model.probe)
    except UnderstudyError as error:
        raise load_failed(f"the probe is not a valid request: {error.message}") from error
    started_s = perf_counter()
    (done,) = model.execute([request])
    duration_ms = (perf_counter() - started_s) * 1000
    if done.outputs is None or done.error is not None:
        raise done.error or load_failed("the probe had no answer")
    model.codec.encode(done.outputs, done.requests, done.rows)
    return duration_ms
