"""A worker process in the hands of its agent: its descriptor and connection, how it is reached and ended."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass

from understudy.adapters.doors import Doorway
from understudy.adapters.links import FrameLink, dial
from understudy.adapters.progress import progress_path
from understudy.agent import probing
from understudy.agent.probing import Step
from understudy.agent.records import Record
from understudy.agent.spawners import Parent
from understudy.core.agent import events as ev
from understudy.core.agent.pools import OWN
from understudy.wire.frames import Frame
from understudy.wire.messages import BatchingEnded, Kind, decode_message

CONNECT_TIMEOUT_S = 10.0  # from the fork to a worker that answers
ADOPT_TIMEOUT_S = 0.5


@dataclass(slots=True, eq=False)
class Handle:
    record: Record
    pidfd: int
    door: Doorway
    parent: Parent = (OWN, 0)  # 0 for one that was adopted
    link: FrameLink | None = None
    status: int | None = None  # as the zygote reported it
    gone: bool = False  # the pidfd says so
    rehearsing: bool = False
    unburied: bool = False  # it ended meanwhile


async def connect(handle: Handle, step: Step, timeout_s: float) -> FrameLink:
    def lost(link: FrameLink, _error: Exception | None) -> None:
        if handle.link is link and not handle.gone:
            step(ev.LinkLost(handle.record.worker))

    def told(_link: FrameLink, frame: Frame) -> None:
        # What else comes unasked are late answers, and the answer to Drain.
        message = decode_message(frame) if frame.kind == Kind.BATCHING_ENDED else None
        if isinstance(message, BatchingEnded):
            step(ev.BatchingEndedAt(handle.record.worker, message.reason))

    handle.link = await dial(f"unix:{handle.record.socket}", lambda: FrameLink(told, lost), timeout_s)
    return handle.link


def asked_of(handle: Handle, step: Step) -> probing.Asked:
    async def reach(timeout_s: float) -> FrameLink:
        link = handle.link
        return await connect(handle, step, timeout_s) if link is None or link.closed else link

    record = handle.record
    return probing.Asked(record.worker, record.pid, progress_path(record.socket), lambda: handle.gone, reach)


def kill(handle: Handle) -> None:
    if not handle.gone:  # its pidfd may be closed by now, and its number mean something else
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle.pidfd, signal.SIGKILL)
