"""What became of a request, on its way back: encoded by the codec, written to the link that it came on."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

import msgspec
import structlog

from understudy.adapters.links import FrameLink
from understudy.invariants import InvariantBroken
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.messages import Probed, Result, encode_result
from understudy.worker.model import Done
from understudy.worker.oip import Answer, Codec, Request

LOG_INTERVAL_S = 1.0  # between two log entries about failing inferences

log = structlog.get_logger()


class Waiting(msgspec.Struct, gc=False):
    """A request and who waits for its answer. Times are in seconds of `monotonic`."""

    link: FrameLink
    stream: int
    request: Request
    arrived_s: float
    deadline_s: float
    is_probe: bool


class Replies:
    """Of one model. `failures`: answered with a failure that is the model's."""

    __slots__ = ("_encode", "_logged_s", "failures")

    def __init__(self, codec: Codec) -> None:
        self.failures = 0
        self._encode = codec.encode
        self._logged_s = 0.0

    def send(
        self, done: Done, answered: Sequence[Waiting], rows: int, started_s: float, ended_s: float
    ) -> None:
        """`answered`: those who wait for `done`, which ran in a batch of `rows`."""
        if done.error is not None:
            self._fail(answered, done.error)
            return
        if done.outputs is None:
            raise InvariantBroken("what a model did is either outputs or an error")
        try:
            answers = self._encode(done.outputs, done.requests, done.rows)
        except MemoryError:
            self._fail(answered, out_of_memory("encode the answer"))
            return
        infer_us = int((ended_s - started_s) * 1e6)
        for waiting, answer in zip(answered, answers, strict=True):
            if waiting.is_probe:
                waiting.link.send(Probed((ended_s - waiting.arrived_s) * 1000), waiting.stream)
            elif isinstance(answer, Answer):
                queue_us = int((started_s - waiting.arrived_s) * 1e6)
                result = Result(infer_us, queue_us, rows, answer.json_bytes)
                waiting.link.write(*encode_result(result, waiting.stream, answer.body))
            else:
                waiting.link.fail(waiting.stream, answer)

    def _fail(self, batch: Sequence[Waiting], error: UnderstudyError) -> None:
        self.failures += len(batch) if error.code is not Code.INVALID_ARGUMENT else 0
        for waiting in batch:
            waiting.link.fail(waiting.stream, error)
        now = monotonic()
        if now - self._logged_s > LOG_INTERVAL_S:
            self._logged_s = now
            log.warning(
                "inference.failed",
                code=error.code,
                error=error.message,
                failures=self.failures,
                traceback=error.traceback,
            )


def out_of_memory(what: str) -> UnderstudyError:
    return UnderstudyError(Code.OUT_OF_MEMORY, f"not enough memory to {what}")
