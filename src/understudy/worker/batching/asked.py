"""The answer to `Rehearse`, from the model's thread."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from functools import partial

from understudy.adapters.links import FrameLink
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.messages import Load, Rehearsed
from understudy.wire.records import BatchingVerdict
from understudy.worker.batching.verdict import judge
from understudy.worker.model import Model, describe


def rehearse(thread: Executor, load: Load, model: Model, link: FrameLink, stream: int) -> None:
    judging = asyncio.get_running_loop().run_in_executor(thread, judge, load, model)
    judging.add_done_callback(partial(_reply, link, stream))


def _reply(link: FrameLink, stream: int, judging: asyncio.Future[BatchingVerdict]) -> None:
    if judging.cancelled():  # the process is ending
        return
    error = judging.exception()
    if error is None:
        link.send(Rehearsed(judging.result()), stream)
    elif isinstance(error, UnderstudyError):
        link.fail(stream, error)
    else:
        link.fail(stream, UnderstudyError(Code.LOAD_FAILED, f"rehearsal: {describe(error)}"))
