"""What the load generator saw: its process, its samples, and questions about them."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from understudy.demo.load import LoadPlan, Sample, framed, read_framed
from understudy.wire.errors import Code, UnderstudyError

RECENT_S = 1.0
END_TIMEOUT_S = 10.0


class Recent(NamedTuple):
    """An app in its last second. Latencies are None where nothing was answered."""

    variant: str
    degraded: str
    requests: int
    failed: int
    p50_ms: float | None
    p99_ms: float | None


class Recording:
    """All samples of a run. Windows are half-open and go by the time at which a request was due."""

    def __init__(self, apps: Iterable[str]) -> None:
        self.apps = tuple(apps)
        self._samples: dict[str, list[Sample]] = {app: [] for app in self.apps}
        self._recent: dict[str, deque[Sample]] = {app: deque() for app in self.apps}
        self._failed = dict.fromkeys(self.apps, 0)

    def add(self, batch: Iterable[Sample]) -> None:
        for sample in batch:
            app = self.apps[sample.app]
            self._samples[app].append(sample)
            self._recent[app].append(sample)
            self._failed[app] += sample.outcome != "ok"

    def window(self, app: str, start_s: float, end_s: float) -> list[Sample]:
        return [s for s in self._samples[app] if start_s <= s.due_s < end_s]

    def failed(self, app: str) -> int:
        """Since the start of the run."""
        return self._failed[app]

    def requests(self, app: str) -> int:
        return len(self._samples[app])

    def recent(self, app: str, now_s: float) -> Recent:
        recent = self._recent[app]
        while recent and recent[0].done_s < now_s - RECENT_S:
            recent.popleft()
        answered = sorted((s for s in recent if s.outcome == "ok"), key=lambda s: s.done_s)
        latencies_ms = sorted(s.latency_s * 1000 for s in answered)
        newest = answered[-1] if answered else None
        return Recent(
            variant=newest.variant if newest else "",
            degraded=newest.degraded if newest else "",
            requests=len(recent),
            failed=len(recent) - len(answered),
            p50_ms=quantile(latencies_ms, 0.5),
            p99_ms=quantile(latencies_ms, 0.99),
        )


def quantile(ordered: list[float], fraction: float) -> float | None:
    """Nearest rank; None of nothing."""
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))] if ordered else None


class LoadProcess:
    """The load generator as a process; its samples arrive in `recording` a moment after they were taken."""

    def __init__(self, plan: LoadPlan) -> None:
        self.recording = Recording(load.app for load in plan.apps)
        self._plan = plan
        self._process: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        """Send until `stop`, then return. Raises INTERNAL if the process ends by itself."""
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "understudy.demo.load"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(framed(msgspec.msgpack.encode(self._plan)))
            decode = msgspec.msgpack.Decoder(list[Sample]).decode
            while (content := await read_framed(process.stdout)) is not None:
                self.recording.add(decode(content))
            if not process.stdin.is_closing():
                raise UnderstudyError(Code.INTERNAL, "the load generator ended", status=await process.wait())
            await asyncio.wait_for(process.wait(), END_TIMEOUT_S)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    def stop(self) -> None:
        """Let the generator send nothing more, finish what is out, and end."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
