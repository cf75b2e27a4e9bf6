"""From a request to a served version: check, measure each variant, commit, wait until it is ready.

A deployment is visible to nobody before its version is committed, and that is one atomic write. What was in
progress when the controller stopped before it is reported as failed; after it, it is followed to its end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
import structlog

from understudy.adapters.artifacts import DirectoryStore
from understudy.adapters.task_groups import ungrouped
from understudy.controller.bookkeeping import Bookkeeper
from understudy.controller.preparing import Preparer
from understudy.controller.profiling import Profiler
from understudy.controller.requests import (
    AppRequest,
    check_request,
    check_size,
    content_digest,
    draft,
    measuring_method,
)
from understudy.core.controller import events as ev
from understudy.core.controller.machine import ControllerMachine
from understudy.core.controller.manifests import is_behind, left_alone, noted
from understudy.core.controller.profiles import without_disturbance
from understudy.core.controller.promises import check_promises
from understudy.core.controller.signature import common_signature, told_changes
from understudy.core.controller.stand_ins import check_known, check_signatures
from understudy.core.controller.stored import (
    Memory,
    Release,
    StoredDeployment,
    deployment_key,
    profile_key,
)
from understudy.core.controller.unbatched import ended_at_work
from understudy.core.lifecycle import DEPLOYMENT, FINISHED, DeploymentPhase, NodePhase, advance
from understudy.settings.cluster import ClusterConfig
from understudy.wire.errors import Code, InvalidArgument, UnderstudyError
from understudy.wire.messages import Measured
from understudy.wire.records import AppVersion, Variant

Spawn = Callable[[Coroutine[Any, Any, None]], object]
Note = Callable[[ev.Note], None]
PROGRESS_STEP_S = 10.0
log = structlog.get_logger()
LOST = "the controller restarted; deploy again"


class Deployment(msgspec.Struct):
    """How far it is. `done` of `total` variants are measured."""

    deployment: str
    app: str
    version: int = 0
    state: DeploymentPhase = DeploymentPhase.STAGING
    done: int = 0
    total: int = 0
    message: str = ""
    notes: tuple[str, ...] = ()  # what was found to be other than a file or the manifest says
    warnings: tuple[str, ...] = ()  # of one that goes on all the same
    traceback: str = ""  # of the model's own code, where that is what failed

    def advance(self, event: str) -> None:
        self.state = advance(DEPLOYMENT, self.state, event)


class Coming(NamedTuple):
    """A version that is being measured."""

    app: AppVersion
    decided: asyncio.Event


class Deployments:
    def __init__(
        self,
        config: ClusterConfig,
        machine: ControllerMachine,
        step: Callable[[ev.Event], None],
        note: Note,
        bookkeeper: Bookkeeper,
        profiler: Profiler,
        preparer: Preparer,
        artifacts: DirectoryStore,
        spawn: Spawn,
    ) -> None:
        self._config = config
        self._tuning = config.controller
        self._machine = machine
        self._step = step
        self._note = note
        self._bookkeeper = bookkeeper
        self._profiler = profiler
        self._preparer = preparer
        self._artifacts = artifacts
        self._spawn = spawn
        self._profiles: dict[str, Measured] = {}
        self._known: dict[str, Deployment] = {}
        self._unread_s: dict[str, float] = {}  # deployment -> loop time of its end, until somebody asks
        self._give_up_s: dict[str, float] = {}  # deployment -> loop time; while placing
        self._measuring: dict[tuple[str, str], float] = {}  # deployment, variant -> since, in loop time
        self._coming: dict[str, Coming] = {}  # by app; until their version is committed, or never will be
        self._next = 1

    def recall(self, memory: Memory, now: float) -> None:
        """Take over what a former controller was doing, and what it measured."""
        digests = {v.artifact.digest for release in memory.releases.values() for v in release.app.variants}
        self._profiles = {key: m for key, m in memory.profiles.items() if key.split("/")[1] in digests}
        self._bookkeeper.save({}, memory.profiles.keys() - self._profiles.keys())
        for stored in memory.deployments.values():
            deployment = Deployment(stored.id, stored.app)
            self._known[stored.id] = deployment
            app = self._machine.apps.get(stored.app)
            if app and self._machine.catalog.releases[(app.app, app.version)].content == stored.content:
                deployment.version = app.version
                deployment.advance("recalled")
                self._place(deployment, app, now)
            else:
                self._fail(deployment, LOST)

    def get(self, id: str) -> Deployment:
        """Raises NOT_FOUND."""
        if id not in self._known:
            what = f"no deployment {id!r}; finished ones are forgotten in time or at a restart"
            raise UnderstudyError(Code.NOT_FOUND, what)
        deployment = self._known[id]
        self._unread_s.pop(id, None)
        if deployment.state == DeploymentPhase.PROFILING:
            deployment.message = _measuring(id, self._measuring)
        return deployment

    def running(self, app: str) -> Deployment | None:
        return next((d for d in self._known.values() if d.app == app and d.state not in FINISHED), None)

    def start(self, request: AppRequest, manifest: str = "", *, if_changed: bool = False) -> Deployment:
        """Begin; `if_changed`: only if the file at the path `manifest` changed since it was deployed last.

        Raises `InvalidArgument` naming the field, TOO_LARGE, CONFLICT, BUSY or STORE_UNAVAILABLE.
        """
        check_request(request, self._config)
        _check_artifacts(self._artifacts, request)
        app = draft(request, self._machine.catalog.next_version(request.name))
        apps = self._machine.apps | self.coming
        check_known(app, {name: each.stand_ins for name, each in apps.items()})
        check_size(app, apps, self._tuning.apps_bytes_max)
        if (other := self.running(request.name)) is not None:
            raise _underway(other)
        self._forget_oldest()
        id = f"d{self._machine.publications.epoch}-{self._next}"
        deployment = Deployment(id, request.name, total=len(request.variants))
        content = content_digest(request)
        books = self._machine.catalog.currents.get(request.name)
        manifests = noted(books, manifest, content, self._tuning.manifests_max)
        app = msgspec.structs.replace(app, content=content, manifests=manifests)
        current = self._machine.apps.get(request.name)
        if current and _is_same(self._machine.catalog.releases[(current.app, current.version)], content):
            self._step(ev.ManifestNoted(app.app, app.manifests))
            deployment.version = current.version
            deployment.done = deployment.total
            deployment.advance("found_unchanged")
            deployment.message = f"unchanged: this is version {current.version}, the current one"
        elif if_changed and is_behind(manifest, content, books, current):
            deployment.version = current.version if current else 0
            deployment.advance("left_alone")
            deployment.message = left_alone(current)
        elif not self._bookkeeper.status.ok:
            what = f"nothing can be deployed now: {self._bookkeeper.status.error}"
            raise UnderstudyError(Code.STORE_UNAVAILABLE, what)
        else:
            self._bookkeeper.save({deployment_key(id): StoredDeployment(id, request.name, content)}, ())
            self._coming[app.app] = Coming(app, asyncio.Event())
            self._spawn(self._run(deployment, app))
        self._next += 1
        self._known[id] = deployment
        return deployment

    @property
    def coming(self) -> dict[str, AppVersion]:
        """Versions that are being measured, by app."""
        return {name: coming.app for name, coming in self._coming.items()}

    def observe(self, now: float) -> None:
        """Finish what is placed. To be called after each step of the machine."""
        for id in list(self._give_up_s):
            deployment = self._known[id]
            app = deployment.app
            if not self._is_current(deployment):
                self._fail(deployment, f"{app} was changed before this version was ready")
            elif app in self._machine.settled:
                deployment.message = ""
                self._finish(deployment, "settled")
                told = "".join(f"; {note}" for note in deployment.notes)
                self._note(ev.Note("app.ready", f"version {deployment.version} is ready{told}", app=app))
            elif (reason := self._without_a_place(deployment)) and self._all_nodes_ready():
                self._fail(deployment, f"deployed, but without a place: {reason}")
            elif now > self._give_up_s[id]:
                waited_s = self._placing_timeout_s(self._machine.apps[app])
                why = f": {reason}" if reason else "; see the app's status"
                self._fail(deployment, f"deployed, but not ready after {waited_s:g} s{why}")

    def _is_current(self, deployment: Deployment) -> bool:
        current = self._machine.apps.get(deployment.app)
        return current is not None and current.version == deployment.version

    def _without_a_place(self, deployment: Deployment) -> str:
        """Why the plan has none for this version. Empty while it has one, or doesn't know the version yet."""
        plan = self._machine.plan
        if plan is None or (deployment.app, deployment.version) not in plan.facts.apps:
            return ""
        return plan.plan.unplaced.get(deployment.app, "")

    def _all_nodes_ready(self) -> bool:
        """Nobody is still to come who might have room."""
        nodes = self._machine.nodes.by_name
        return all(c.name in nodes and nodes[c.name].state == NodePhase.READY for c in self._config.nodes)

    async def _run(self, deployment: Deployment, draft_app: AppVersion) -> None:
        try:
            unready = await self._preparer.prepare(draft_app)
            deployment.advance("prepared")
            measured = await self._measure_all(deployment, draft_app)
            for name in draft_app.stand_ins:  # which never wait for this one: circles are refused
                if name in self._coming:
                    await self._coming[name].decided.wait()
            deployment.notes = _notes(measured)
            app = _assembled(draft_app, measured)
            try:
                changes = told_changes(self._machine.apps.get(app.app), app)
                deployment.warnings = (*unready, *check_promises(app), *changes)
            except InvalidArgument:
                self._forget_profiles(draft_app)  # the node may have been disturbed: measured anew next time
                raise
            check_signatures(app, self._machine.apps)
            check_size(app, self._machine.apps | self.coming, self._tuning.apps_bytes_max)
            # A peer may have told of later versions meanwhile.
            app = msgspec.structs.replace(app, version=self._machine.catalog.next_version(app.app))
            deployment.version = app.version
            release = Release(app, app.content)
            await self._bookkeeper.commit(*self._machine.release_records(release))
        except UnderstudyError as error:
            deployment.traceback = error.traceback[-self._tuning.deployment_traceback_bytes_max :]
            self._fail(deployment, error.message)
            return
        except Exception as error:  # of ours: it ends this deployment, and nothing else
            log.exception("deployment.broke", deployment=deployment.deployment, app=deployment.app)
            self._fail(deployment, f"{type(error).__name__}; the controller's log has the details")
            return
        else:
            deployment.advance("measured")
            self._place(deployment, app, asyncio.get_running_loop().time())
            self._step(ev.Deployed(release))
            for variant in app.variants:
                self._note(ev.Note("batching.decided", f"{variant.name} {variant.batching}", app=app.app))
        finally:
            self._coming.pop(draft_app.app).decided.set()

    async def _measure_all(self, deployment: Deployment, app: AppVersion) -> dict[str, Measured]:
        measured: dict[str, Measured] = {}

        async def measure(variant: Variant) -> None:
            with _timed(self._measuring, (deployment.deployment, variant.name)):
                measured[variant.name] = await self._measure(app, variant)
            deployment.done += 1

        with ungrouped(Exception):
            async with asyncio.TaskGroup() as tasks:
                for variant in app.variants:
                    tasks.create_task(measure(variant))
        return {variant.name: measured[variant.name] for variant in app.variants}

    async def _measure(self, app: AppVersion, variant: Variant) -> Measured:
        key = profile_key(variant.artifact.digest, measuring_method(app, variant))
        if key not in self._profiles:
            try:
                measured = await self._profiler.measure(app, variant.name)
            except UnderstudyError as error:
                raise with_setting(variant, error) from error
            self._profiles[key] = measured
            self._bookkeeper.save({key: measured}, ())
        found = self._profiles[key]
        ended = ended_at_work(self._machine.catalog.releases.values(), variant.artifact.digest)
        if ended is not None and found.verdict is not None and found.verdict.together:
            return msgspec.structs.replace(found, verdict=ended)
        return found

    def _forget_profiles(self, app: AppVersion) -> None:
        keys = [profile_key(v.artifact.digest, measuring_method(app, v)) for v in app.variants]
        for key in keys:
            self._profiles.pop(key, None)
        self._bookkeeper.save({}, keys)

    def _place(self, deployment: Deployment, app: AppVersion, now: float) -> None:
        deployment.message = "waiting for its primary"
        self._give_up_s[deployment.deployment] = now + self._placing_timeout_s(app)

    def _placing_timeout_s(self, app: AppVersion) -> float:
        return self._tuning.placing_timeout_s + max(v.load_timeout_s or 0.0 for v in app.variants)

    def _fail(self, deployment: Deployment, reason: str) -> None:
        deployment.message = reason
        self._finish(deployment, "failed")
        data = {"traceback": deployment.traceback} if deployment.traceback else {}
        message = f"{deployment.deployment}: {reason}"
        self._note(ev.Note("deployment.failed", message, app=deployment.app, data=data))

    def _finish(self, deployment: Deployment, event: str) -> None:
        deployment.advance(event)
        self._unread_s[deployment.deployment] = asyncio.get_running_loop().time()
        self._give_up_s.pop(deployment.deployment, None)
        self._bookkeeper.save({}, (deployment_key(deployment.deployment),))

    def _forget_oldest(self) -> None:
        """Make room for one more: of those that ended, first what was read, then what nobody asked for."""
        if len(self._known) < self._tuning.deployments_max:
            return
        ended = [id for id, d in self._known.items() if d.state in FINISHED]
        oldest = next((id for id in ended if id not in self._unread_s), ended[0] if ended else None)
        patience_s = self._tuning.deployment_memory_s
        now = asyncio.get_running_loop().time()
        if oldest is None or now - self._unread_s.get(oldest, now - patience_s) < patience_s:
            raise UnderstudyError(Code.BUSY, "too many deployments are in progress; try again later")
        del self._known[oldest]
        self._unread_s.pop(oldest, None)


def _underway(deployment: Deployment) -> UnderstudyError:
    what = (
        f"{deployment.app} is being deployed already ({deployment.deployment}), which goes on by itself: "
        f"see `understudy events --app {deployment.app}`; deploy again once that has ended"
    )
    return UnderstudyError(Code.CONFLICT, what)


def _check_artifacts(artifacts: DirectoryStore, request: AppRequest) -> None:
    needed = [(f"variants[{i}].artifact", v.artifact) for i, v in enumerate(request.variants)]
    needed += [(f"variants[{i}].wheels", v.wheels) for i, v in enumerate(request.variants) if v.wheels]
    for field, artifact in needed:
        artifacts.touch(artifact.digest)
        try:
            size_bytes = artifacts.path(artifact.digest).stat().st_size
        except OSError:
            path = f"/v1/artifacts/{artifact.digest}"
            raise InvalidArgument(f"{field}: {artifact.file_name} isn't there; PUT it to {path}") from None
        if size_bytes != artifact.size_bytes:
            raise InvalidArgument(f"{field}.size_bytes: the uploaded file has {size_bytes} bytes")


@contextlib.contextmanager
def _timed(since_s: dict[tuple[str, str], float], what: tuple[str, str]) -> Iterator[None]:
    since_s[what] = asyncio.get_running_loop().time()
    try:
        yield
    finally:
        del since_s[what]


def _measuring(id: str, since_s: Mapping[tuple[str, str], float]) -> str:
    """For how long each of its variants has been measured; in steps, since who follows shows each change."""
    now = asyncio.get_running_loop().time()
    steps = {variant: (now - at) // PROGRESS_STEP_S for (of, variant), at in since_s.items() if of == id}
    return ", ".join(f"{name} for {step * PROGRESS_STEP_S:.0f} s" for name, step in steps.items() if step)


def with_setting(variant: Variant, error: UnderstudyError) -> UnderstudyError:
    """Why it couldn't be measured, with the setting that may help."""
    limit_mb = variant.memory_limit_mb
    about_memory = "memory" in error.message and "memory_limit_mb" not in error.message
    hint = f" (memory_limit_mb = {limit_mb:g})" if limit_mb and about_memory else ""
    if "No module named" in error.message:
        hint = (
            " (packages come from the file that `requirements` names in the manifest; of a directory that is "
            "deployed without one, from a requirements.txt beside model.py)"
        )
    told = UnderstudyError(error.code, f"variant {variant.name!r}: {error.message}{hint}")
    told.traceback = error.traceback
    return told


def _is_same(release: Release, content: str) -> bool:
    """An older version may lack what is found out today; deployed again, it is measured again."""
    return release.content == content and all(v.verdict is not None for v in release.app.variants)


def _notes(measured: Mapping[str, Measured]) -> tuple[str, ...]:
    """Each once, with the variants that it is about."""
    about: dict[str, list[str]] = {}
    for variant, found in measured.items():
        for note in found.notes:
            about.setdefault(note, []).append(variant)
    return tuple(f"{', '.join(variants)}: {note}" for note, variants in about.items())


def _assembled(app: AppVersion, measured: Mapping[str, Measured]) -> AppVersion:
    """`app` with what was measured; variants best first, of equals the smaller first."""
    inputs, outputs = common_signature(measured)
    variants = [
        msgspec.structs.replace(v, profile=measured[v.name].profile, verdict=measured[v.name].verdict)
        for v in app.variants
    ]
    variants.sort(key=lambda v: (-v.accuracy, measured[v.name].profile.replica_mb, v.name))
    return msgspec.structs.replace(
        app, variants=without_disturbance(variants), inputs=inputs, outputs=outputs
    )
