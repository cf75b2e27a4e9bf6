"""Giving a worker its model: limit it, stage the artifact, say what is to be loaded, tell what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from understudy.adapters.links import FrameLink
from understudy.agent.handles import ADOPT_TIMEOUT_S, Handle, connect, kill
from understudy.agent.limits import Groups
from understudy.agent.prints import Prints
from understudy.agent.probing import Step, jitter
from understudy.agent.staging import Staging
from understudy.core.agent import events as ev
from understudy.core.agent.replicas import load_timeout_s, request_memory_mb
from understudy.settings.cluster import ClusterConfig
from understudy.settings.runtimes import facts_of
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.messages import Load, Loaded, Rehearse, Rehearsed
from understudy.wire.records import BatchingVerdict, Variant

MEASURE_LATENCY_RUNS = 20


class Loads:
    def __init__(
        self, config: ClusterConfig, groups: Groups, staging: Staging, prints: Prints, step: Step
    ) -> None:
        self._config = config
        self._tuning = config.agent
        self._groups = groups
        self._staging = staging
        self._prints = prints
        self._step = step

    async def load(self, handle: Handle, effect: ev.LoadWorker, exited: Callable[[Handle], None]) -> None:
        """`exited` is called if it ended meanwhile."""
        worker, app, variant = effect.worker, effect.app, effect.variant
        self._prints.label(worker, app.app, app.version, variant.name)
        try:
            self._groups.limit(handle.record.groups, handle.record.pid, effect.limit_mb)
            path = await self._staging.provide(variant.artifact, worker)
            link = handle.link or await connect(handle, self._step, ADOPT_TIMEOUT_S)
            message = Load(
                replica=worker,
                app=app.app,
                version=app.version,
                variant=variant.name,
                runtime=variant.runtime,
                path=str(path),
                options=_options(variant, brief=effect.brief),
                inputs=app.inputs,
                outputs=app.outputs,
                finite=app.finite,
                missing=app.missing,
                request_memory_mb=request_memory_mb(variant, self._tuning),
                memory_per_byte=variant.profile.memory_per_byte if variant.profile else 0.0,
                output_per_byte=variant.profile.output_per_byte if variant.profile else 0.0,
                batching=app.batching,
                probe=app.probe,
                queue_rows_max=self._config.worker.queue_rows_max,
                measure_latency_runs=MEASURE_LATENCY_RUNS if effect.measure else 1,
                verdict=variant.verdict,
            )
            timeout_s = load_timeout_s(variant, self._tuning)
            loaded = await link.call(message, Loaded, timeout_s)
            if effect.measure:
                loaded.verdict = await self._rehearse(handle, link)
        except UnderstudyError as error:
            if error.code is Code.LINK_LOST:
                kill(handle)  # its exit says more than this
            elif error.code is Code.TIMEOUT:
                what = f"loading took longer than load_timeout_s = {timeout_s:g} allows"
                self._step(ev.LoadFailed(worker, Code.TIMEOUT, what, jitter()))
            else:
                self._step(ev.LoadFailed(worker, error.code, str(error), jitter(), error.traceback))
        except OSError as error:
            self._step(ev.LoadFailed(worker, Code.UNAVAILABLE, f"memory limit: {error}", jitter()))
        else:
            self._step(ev.LoadDone(worker, loaded))
        finally:
            self._staging.let_go(worker)
        handle.rehearsing = False
        if handle.unburied:
            exited(handle)

    async def _rehearse(self, handle: Handle, link: FrameLink) -> BatchingVerdict:
        """A model that rows of no kind that it expects bring down or hold up is as good as before."""
        handle.rehearsing = True
        try:
            return (await link.call(Rehearse(), Rehearsed, self._tuning.rehearsal_timeout_s)).verdict
        except UnderstudyError as error:
            if error.code not in (Code.LINK_LOST, Code.TIMEOUT):
                raise
            ended = "its worker ended" if error.code is Code.LINK_LOST else "it took too long"
            return BatchingVerdict(False, "rehearsal", f"{ended} while it was rehearsed with drawn rows")


def _options(variant: Variant, *, brief: bool) -> dict[str, Any]:
    options = facts_of(variant.runtime).brief_options if brief else {}
    return options | variant.options
