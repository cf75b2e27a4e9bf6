"""The answer to `Rehearse`, from the model's thread."""

from __future__ import annotations

from functools import partial

from understudy.adapters.links import FrameLink
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.messages import Load, Rehearsed
from understudy.wire.records import BatchingVerdict
from understudy.worker.batching.verdict import judge
from understudy.worker.model import Model
from understudy.worker.model_thread import ModelThread
from understudy.worker.raised import describe


def rehearse(thread: ModelThread, load: Load, model: Model, link: FrameLink, stream: int) -> None:
    thread.call(lambda _: judge(load, model), None, partial(_reply, link, stream))


def _reply(link: FrameLink, stream: int, verdict: BatchingVerdict, error: BaseException | None) -> None:
    if error is None:
        link.send(Rehearsed(verdict), stream)
    elif isinstance(error, UnderstudyError):
        link.fail(stream, error)
    else:
        link.fail(stream, UnderstudyError(Code.LOAD_FAILED, f"rehearsal: {describe(error)}"))
