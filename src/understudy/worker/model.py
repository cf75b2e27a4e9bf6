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
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.messages import Load, Loaded
from understudy.wire.tensors import Array
from understudy.worker.costs import (
    ELEMENT_BYTES,
    JSON_FACTOR,
    SMALL_BYTES,
    Appetite,
    array_bytes,
    number_bytes,
    refuse_beyond,
)
from understudy.worker.guard import Guard
from understudy.worker.oip import Request
from understudy.worker.raised import blame, contain, describe, loading_error
from understudy.worker.rehearsal.memory import appetite
from understudy.worker.rehearsal.probes import Tried, no_probe_passed, note_of, probes
from understudy.worker.rehearsal.shapes import corrected
from understudy.worker.runtimes import make_runtime
from understudy.worker.runtimes.contract import Runtime, load_failed
from understudy.worker.signature import Signature, agree

try:
    from understudy.worker.protobuf import Codec
except ModuleNotFoundError:  # protobuf is an extra
    from understudy.worker.oip import Codec  # type: ignore[assignment]

MEASURE_MS_MAX = 2000.0  # spent on measuring the latency: fewer runs tell as much of a slow model
WARM_RUNS = 4
WARM_MS_MAX = 4.0  # spent on them at most


class Done(NamedTuple):
    """Outcome of requests that ran together: `outputs` of `rows` rows, or the `error` of all of them."""

    requests: Sequence[Request]
    rows: int
    outputs: dict[str, Array] | None
    error: UnderstudyError | None


class Model:
    """Runtime, codec and guard of one replica.

    `batched`: requests may be concatenated along dimension 0, which has been shown to be harmless.
    """

    def __init__(self, load: Load, runtime: Runtime, signature: Signature, probe: bytes) -> None:
        self.inputs = signature.inputs
        self.outputs = signature.outputs
        self.batched = signature.batched and load.verdict is not None and load.verdict.together
        self.own_thread = runtime.own_thread
        self._unload = runtime.unload
        self.codec = Codec(
            load.app,
            load.version,
            self.inputs,
            self.outputs,
            batched=signature.batched,
            together=self.batched,
        )
        self.codec.keeps_parameters = runtime.takes_parameters
        if load.missing == "nan":
            self.codec.allow_missing()
        self._source = runtime.source
        self._pid = os.getpid()
        self._guard = Guard(self.outputs, batched=self.batched, by_rows=signature.batched)
        self._predict = runtime.predict
        self._axes = runtime.axes
        texts = any(spec.datatype == "BYTES" for spec in self.inputs)
        self._bytes_of = array_bytes if texts else number_bytes
        self.be_hungry(
            Appetite(load.memory_per_byte, load.output_per_byte) if load.memory_per_byte else Appetite()
        )
        self.request_bytes_max = int(load.request_memory_mb * 2**20) // 2 or 2**62
        self.codec.rows_may_differ = all(spec.hint for spec in self.outputs)
        self.codec.decoded_bytes_max = self.request_bytes_max
        self.codec.text_bytes = ELEMENT_BYTES * self.appetite.in_binary
        self.probe = probe
        self.probe_s = 0.0  # shortest inference on the probe; measured by `load_model`

    def be_hungry(self, appetite: Appetite) -> None:
        """What requests cost from now on."""
        self.appetite = appetite
        self._json_factor, self._binary_factor = appetite.in_json, appetite.in_binary

    def permit_probe(self) -> None:
        """What answers its probe may be asked as much, whatever a request may take otherwise."""
        inputs = self.codec.decode(self.probe).inputs.values()
        body_bytes = SMALL_BYTES + JSON_FACTOR * sum(array.nbytes for array in inputs)  # the longest numbers
        needed = body_bytes + int(sum(map(self._bytes_of, inputs)) * self._json_factor)
        self.request_bytes_max = max(self.request_bytes_max, needed)

    def cost(self, request: Request, body_bytes: int) -> int:
        """Bytes that it takes until it is answered. Raises TOO_LARGE beyond what one request may."""
        binary = request.protobuf or request.outputs[0].binary
        factor = self._binary_factor if binary else self._json_factor
        cost = body_bytes + int(sum(map(self._bytes_of, request.inputs.values())) * factor)
        if cost > self.request_bytes_max:
            refuse_beyond(self.request_bytes_max, cost, "the request")
        return cost

    def execute(self, requests: Sequence[Request]) -> list[Done]:
        """Run `requests` as one batch; if that fails, one by one, so that only the guilty one fails."""
        if len(requests) == 1:
            return [self._execute_one(requests[0])]
        rows = sum([request.rows for request in requests])
        try:
            inputs = {
                name: np.concatenate([request.inputs[name] for request in requests])
                for name in requests[0].inputs
            }
            predicted = self._predict(inputs, requests[0].parameters)
            outputs = self._guard.accept(predicted, inputs, rows, shared=True)
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

    def answer(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """What is returned for these inputs, guarded. Raises what a request with them would be told."""
        (done,) = self.execute([Request(inputs, 1, (), None, ())])
        if done.outputs is None:
            raise done.error or load_failed("the model gave no answer")
        return done.outputs

    def _execute_one(self, request: Request) -> Done:
        inputs = request.inputs
        rows = request.rows
        try:
            outputs = self._guard.accept(self._predict(inputs, request.parameters), inputs, rows)
        except BaseException as error:
            contain(error, self._pid)
            return Done((request,), rows, None, blame(error, self._source, inputs, self._axes))
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
        model, first_ms, notes = _first(load, runtime, agree(load, runtime), lenient=profiling)
        load_ms = (perf_counter() - started_s) * 1000
        if profiling:
            model, corrections = _corrected(load, runtime, model)
            notes += corrections
        latencies_ms = [first_ms]
        while len(latencies_ms) < load.measure_latency_runs and sum(latencies_ms) < MEASURE_MS_MAX:
            latencies_ms.append(_rehearse(model))
        median_ms = statistics.median(latencies_ms)
        model.probe_s = _warm_latency_s(model, min(latencies_ms))
        memory_mb = max(0.0, pss_mb() - base_mb) if profiling else 0.0
        if profiling:
            probe = model.codec.decode(model.probe).inputs
            model.be_hungry(appetite(runtime.predict, probe, model.inputs))
        model.permit_probe()
    except BaseException as error:
        contain(error, pid)
        raise loading_error(error, runtime.source if runtime else "", f"{load.app}/{load.variant}") from None
    # What is alive now stays alive: later collections needn't look at it.
    gc.freeze()
    return model, Loaded(
        load_ms,
        first_ms,
        median_ms,
        base_mb,
        memory_mb,
        model.inputs,
        model.outputs,
        notes,
        model.appetite.per_byte,
        model.appetite.output_per_byte,
    )


def _first(
    load: Load, runtime: Runtime, signature: Signature, *, lenient: bool
) -> tuple[Model, float, tuple[str, ...]]:
    """A model that has answered a probe, the milliseconds that this took, and what is to be said of it.

    `lenient`: outputs may have any shape, where the runtime's own word for them isn't the last.
    """
    if lenient and runtime.described:
        signature = signature.unpromised()
    failures: list[tuple[Tried, UnderstudyError]] = []
    for tried in probes(load.probe, signature.inputs):
        model = Model(load, runtime, signature, tried.body)
        try:
            first_ms = _rehearse(model)
        except UnderstudyError as error:
            failures.append((tried, error))
            if error.code is Code.OUT_OF_MEMORY:
                break
        else:
            return model, first_ms, runtime.notes + ((note_of(failures, tried),) if failures else ())
    raise no_probe_passed(failures)


def _corrected(load: Load, runtime: Runtime, model: Model) -> tuple[Model, tuple[str, ...]]:
    """The model with outputs as they are really returned. Raises what `_rehearse` does."""
    signature = agree(load, runtime)
    notes: tuple[str, ...] = ()
    if runtime.described:
        inputs = model.codec.decode(model.probe).inputs
        outputs, notes = corrected(runtime.predict, inputs, signature.inputs, signature.outputs, runtime.axes)
        signature = Signature(signature.inputs, outputs)
    model = Model(load, runtime, signature, model.probe)
    _rehearse(model)
    return model, notes


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
