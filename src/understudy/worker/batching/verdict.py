"""May requests to this variant share a batch? Asked once, while it is measured."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import structlog

from understudy.core.worker.proof import Proof, prove
from understudy.wire.errors import UnderstudyError
from understudy.wire.messages import Load
from understudy.wire.records import BatchingVerdict, TensorSpec
from understudy.worker.batching.onnx_file import read_graph
from understudy.worker.batching.rehearsal import Outcome, Rehearsal
from understudy.worker.batching.rows import probe_rows
from understudy.worker.batching.tolerance import Tolerance
from understudy.worker.model import Model
from understudy.worker.runtimes.contract import load_failed

NO_PROOF = Proof(False, "nothing but rehearsal can tell")

log = structlog.get_logger()


def judge(load: Load, model: Model, clock: Callable[[], float] = monotonic) -> BatchingVerdict:
    """`model` is that of `load`. Runs inferences, so it belongs into the model's thread.

    Raises LOAD_FAILED where the app insists on batching and the evidence is against it.
    """
    inputs, outputs = model.inputs, model.outputs
    wanted = load.batching
    if not all(spec.shape[:1] == (-1,) for spec in inputs + outputs):
        return BatchingVerdict(False, "shape", "not every tensor has a first dimension of any length")
    if wanted.mode == "never" or wanted.rows_max == 1:
        setting = 'mode = "never"' if wanted.mode == "never" else "rows_max = 1"
        return BatchingVerdict(False, "setting", f"[batching] {setting}")
    proof = _proof(load, inputs, outputs)
    if proof.proven:
        return BatchingVerdict(True, "graph", proof.reason)
    if proof.crosses and wanted.tolerance is None:
        if wanted.mode == "always":
            raise _against(load, proof.reason)
        return BatchingVerdict(False, "graph", proof.reason)
    rehearsal = Rehearsal(model.answer, inputs, Tolerance(outputs, wanted.tolerance), clock)
    own = probe_rows(model.codec.decode(model.probe).inputs)
    found = rehearsal.run(own, wanted.rows_max, model.probe_s)
    if wanted.mode != "always":
        return BatchingVerdict(found.outcome is Outcome.SAME, "rehearsal", found.reason)
    if found.outcome is Outcome.DIFFERENT:
        raise _against(load, found.reason)
    return BatchingVerdict(True, "declared", f'[batching] mode = "always"; {found.reason}')


def _against(load: Load, evidence: str) -> UnderstudyError:
    larger = "a larger" if load.batching.tolerance is not None else "a"
    return load_failed(
        f'[batching] mode = "always", but {evidence}; declare {larger} [batching] tolerance, '
        'or leave the choice to mode = "auto"'
    )


def _proof(load: Load, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Proof:
    if load.runtime != "onnx":
        return NO_PROOF
    try:
        graph = read_graph(load.path)
        return prove(graph, inputs, outputs) if graph is not None else NO_PROOF
    except Exception as error:  # whatever a file may hold: without a proof, rehearsal has the word
        log.warning("graph.not_read", path=load.path, error=repr(error)[:500])
        return NO_PROOF
