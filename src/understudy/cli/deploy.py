"""Deploying: pack, upload what the cluster lacks, register the app, follow it until it is ready."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlencode

import msgspec

from understudy.adapters.control import Servers, failure, segment
from understudy.cli.output import Output
from understudy.cli.packing import Artifact, ManifestSource, Package, find_manifests
from understudy.core.lifecycle import FINISHED, DeploymentPhase
from understudy.wire.errors import Code, CommandError, ConfigError, Origin, UnderstudyError
from understudy.wire.records import OTHER_APP

FOLLOW_INTERVAL_S = 0.1
FOLLOWED_OFTEN = 10  # deployments
BUSY_WAIT_S = 600.0  # for a controller that has too many to do, where nobody says how long to wait
UPLOAD_TIMEOUT_S = 120.0  # for one block to go through, or the digest to be checked


class DeploymentState(msgspec.Struct):
    """How far a deployment is, as the control API tells it."""

    state: str = DeploymentPhase.STAGING
    done: int = 0
    total: int = 0
    message: str = ""
    app: str = ""
    version: int = 0
    deployment: str | int = ""
    notes: tuple[str, ...] = ()  # what was found to be other than a file or the manifest says
    warnings: tuple[str, ...] = ()
    traceback: str = ""  # of the model's own code

    @property
    def finished(self) -> bool:
        return self.state in FINISHED


class DeployProgress(Protocol):
    """Who is told how it goes."""

    def noting(self, app: str, note: str) -> None: ...
    def uploading(self, artifact: Artifact, sent_bytes: int) -> None: ...
    def following(self, deployment: DeploymentState) -> None: ...


class Silent:
    def noting(self, app: str, note: str) -> None:
        return None

    def uploading(self, artifact: Artifact, sent_bytes: int) -> None:
        return None

    def following(self, deployment: DeploymentState) -> None:
        return None


def submit(
    control: Servers, package: Package, progress: DeployProgress, *, if_changed: bool = False
) -> DeploymentState:
    """Upload what is missing and register the app. Returns a deployment that has just begun.

    `if_changed`: unless the manifest brought the same before, when it was deployed last.
    """
    for note in package.notes:
        progress.noting(package.name, note)
    for artifact in package.artifacts:
        path = f"/v1/artifacts/{artifact.ref.digest}"
        if control.call("HEAD", path).status != 200:
            artifact.content.seek(0)  # it may have been tried before
            source = _Metered(artifact, progress)
            upload = (source, artifact.ref.size_bytes)
            reply = control.call("PUT", path, upload=upload, timeout_s=UPLOAD_TIMEOUT_S)
            if reply.status >= 400:
                raise _upload_failure(failure(reply), artifact)
        progress.uploading(artifact, artifact.ref.size_bytes)
    query = urlencode({"manifest": package.path, "if_changed": str(if_changed).lower()})
    answer = control.ask("POST", f"/v1/apps?{query}", body=package.description)
    begun = msgspec.convert(answer, DeploymentState, strict=False)
    begun.app = begun.app or package.name
    return begun


def follow(
    control: Servers,
    begun: Iterable[DeploymentState],
    progress: DeployProgress,
    timeout_s: float,
    since_s: float | None = None,
) -> list[DeploymentState]:
    """Poll until each is ready or failed. Raises TIMEOUT; a controller that is away is waited for.

    `since_s`: from when on the time counts, by the monotonic clock; from now by default.
    """
    deadline_s = (time.monotonic() if since_s is None else since_s) + timeout_s
    current = list(begun)
    with _going_on(current):
        while not all(d.finished for d in current):
            if time.monotonic() > deadline_s:
                raise _late(current, timeout_s)
            time.sleep(_interval_s(current))
            current[:] = refresh(control, current, progress)
    return current


def refresh(
    control: Servers, deployments: Iterable[DeploymentState], progress: DeployProgress
) -> list[DeploymentState]:
    """Where they are now. One that can't be asked about stays as it was."""
    fresh = [d if d.finished else _refreshed(control, d) for d in deployments]
    for deployment in fresh:
        progress.following(deployment)
    return fresh


def deploy(
    control: Servers,
    path: Path | Sequence[ManifestSource],
    progress: DeployProgress | None = None,
    *,
    wait_s: float | None = 120.0,
) -> list[DeploymentState]:
    """Deploy a manifest, a directory of manifests, or what they say. `wait_s` None: don't wait for readiness.

    Everything is read and checked before anything is sent. Of several, one that is refused is told as failed
    and doesn't keep the others back. While the controller has too many to do, it is waited for.
    """
    progress = progress or Silent()
    sources = [ManifestSource.of(each) for each in find_manifests(path)] if isinstance(path, Path) else path
    for source in sources:
        source.check()
    if wait_s is not None:  # each variant is loaded to be measured, and then where it serves
        declared_s = [v.load_timeout_s or 0.0 for source in sources for v in source.manifest.variants]
        wait_s += 2 * max(declared_s, default=0.0)
    began_s = time.monotonic()
    deadline_s = began_s + (BUSY_WAIT_S if wait_s is None else wait_s)
    current: list[DeploymentState] = []
    for source in _stand_ins_first(sources):
        with _going_on(current), source.pack() as package:
            while True:
                try:
                    current.append(submit(control, package, progress))
                except UnderstudyError as error:
                    if error.code is Code.BUSY and time.monotonic() < deadline_s:
                        time.sleep(_interval_s(current))
                        current[:] = refresh(control, current, progress)
                        continue
                    if len(sources) == 1 or error.origin is not Origin.CALLER:
                        raise
                    refused = DeploymentState("failed", app=package.name, message=error.message)
                    current.append(refused)
                break
    return current if wait_s is None else follow(control, current, progress, wait_s, began_s)


@contextlib.contextmanager
def _going_on(current: list[DeploymentState]) -> Iterator[None]:
    """Whoever interrupts this is told what of `current`, as it is then, goes on by itself."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        for deployment in current:
            if not deployment.finished:
                interrupt.add_note(
                    f"{sentence(deployment)}, which goes on by itself: see `understudy status` "
                    f"and `understudy events --app {deployment.app}`"
                )
        raise


def _late(current: Sequence[DeploymentState], timeout_s: float) -> CommandError:
    late = ", ".join(f"{d.app} ({_describe(d)})" for d in current if not d.finished)
    hint = "it goes on by itself: see `understudy status` and `understudy events`; --timeout waits longer"
    return CommandError(Code.TIMEOUT, f"not ready within {timeout_s:g} s: {late}", hint)


def _interval_s(current: Sequence[DeploymentState]) -> float:
    """Each is asked about by itself: many are asked about less often."""
    return FOLLOW_INTERVAL_S * max(1.0, sum(not d.finished for d in current) / FOLLOWED_OFTEN)


def _upload_failure(error: UnderstudyError, artifact: Artifact) -> UnderstudyError:
    if error.code is not Code.ARTIFACT_CORRUPT:
        return error
    return CommandError(
        error.code, f"{artifact.ref.file_name}: the content changed while it was read", "deploy it again"
    )


def _stand_ins_first(sources: Sequence[ManifestSource]) -> list[ManifestSource]:
    """An app that another one names in its fallback chain has to be there before that one."""
    by_name: dict[str, ManifestSource] = {}
    for source in sources:
        name = source.manifest.name
        if name in by_name:
            raise ConfigError(f"{source.name}: name: {name!r} is that of {by_name[name].name} too")
        by_name[name] = source
    ordered: dict[str, ManifestSource] = {}

    def add(name: str, above: tuple[str, ...]) -> None:
        if name in by_name and name not in above:  # a circle is for the controller to refuse
            for link in by_name[name].manifest.fallback or ():
                add(link.removeprefix(OTHER_APP), (*above, name))
            ordered.setdefault(name, by_name[name])

    for name in by_name:
        add(name, ())
    return list(ordered.values())


def _refreshed(control: Servers, deployment: DeploymentState) -> DeploymentState:
    try:
        answer = control.get(f"/v1/deployments/{segment(str(deployment.deployment))}")
    except UnderstudyError as error:
        if error.code in (Code.UNAVAILABLE, Code.TIMEOUT):
            return deployment
        if error.code is not Code.NOT_FOUND:
            raise
        message = "the controller no longer knows how it ended: see `understudy status`"
        return msgspec.structs.replace(deployment, state=DeploymentPhase.FAILED, message=message)
    fresh = msgspec.convert(answer, DeploymentState, strict=False)
    fresh.deployment = deployment.deployment
    return fresh


def _describe(deployment: DeploymentState) -> str:
    steps = f" {deployment.done}/{deployment.total}" if deployment.total else ""
    return f"{deployment.state}{steps}{': ' + deployment.message if deployment.message else ''}"


class _Metered:
    """An artifact's content that tells how much of it was read."""

    def __init__(self, artifact: Artifact, progress: DeployProgress) -> None:
        self._artifact = artifact
        self._content: IO[bytes] = artifact.content
        self._progress = progress
        self._sent_bytes = 0

    def read(self, size: int = -1, /) -> bytes:
        left_bytes = self._artifact.ref.size_bytes - self._sent_bytes
        block = self._content.read(left_bytes if size < 0 else min(size, left_bytes))
        self._sent_bytes += len(block)
        if not block and left_bytes:
            what = f"{self._artifact.ref.file_name}: became shorter while it was read"
            raise CommandError(Code.CONFIG, what, "deploy it again")
        self._progress.uploading(self._artifact, self._sent_bytes)
        return block


class Bars:
    """Progress bars on a terminal; elsewhere one line for each change of state."""

    def __init__(self, output: Output) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._output = output
        self._live = output.stderr.is_terminal
        self._tasks: dict[str, Any] = {}
        self._states: dict[str, str] = {}
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[state]}"),
            console=output.stderr,
            disable=not self._live,
        )

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def noting(self, app: str, note: str) -> None:
        self._output.note(f"{app}: {note}")

    def uploading(self, artifact: Artifact, sent_bytes: int) -> None:
        ref = artifact.ref
        done = sent_bytes >= ref.size_bytes
        self._show(ref.digest, ref.file_name, sent_bytes, ref.size_bytes, "uploaded" if done else "uploading")

    def following(self, deployment: DeploymentState) -> None:
        steps = max(deployment.total, 1)
        done = steps if deployment.state == DeploymentPhase.READY else min(deployment.done, steps)
        self._show(str(deployment.deployment), deployment.app, done, steps, _describe(deployment))

    def _show(self, key: str, label: str, done: int, total: int, state: str) -> None:
        if not self._live:
            if self._states.get(key) != state and state != "uploading":
                self._output.note(f"{label}: {state}")
            self._states[key] = state
            return
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(label, total=total, state=state)
        self._bars.update(self._tasks[key], completed=done, total=total, state=state)


def run_deploy(
    control: Servers,
    sources: Sequence[ManifestSource],
    output: Output,
    wait_s: float | None,
    *,
    verbose: bool = False,
) -> bool:
    """The command. False when a deployment failed."""
    bars: contextlib.AbstractContextManager[DeployProgress] = (
        contextlib.nullcontext(Silent()) if output.as_json else Bars(output)
    )
    with bars as progress:
        finished = deploy(control, sources, progress, wait_s=wait_s)
    if output.as_json:
        output.data({"deployments": finished})
    else:
        for deployment in finished:
            _tell(deployment, output, verbose=verbose)
    return not any(d.state == DeploymentPhase.FAILED for d in finished)


def _tell(deployment: DeploymentState, output: Output, *, verbose: bool) -> None:
    output.stdout.print(sentence(deployment), markup=False, soft_wrap=True)
    for note in deployment.notes:
        output.stdout.print(f"{deployment.app}: note: {note}", markup=False, soft_wrap=True)
    warn(deployment, output)
    if deployment.traceback and verbose:
        output.note(deployment.traceback.rstrip())
    elif deployment.traceback:
        output.note(f"{deployment.app}: --verbose shows the traceback of the model's code")


def warn(deployment: DeploymentState, output: Output) -> None:
    for warning in deployment.warnings:
        output.note(f"{deployment.app}: warning: {warning}")


def sentence(deployment: DeploymentState) -> str:
    name = f"{deployment.app} version {deployment.version}" if deployment.version else deployment.app
    if deployment.state == DeploymentPhase.READY:
        return f"{name} is ready ({deployment.message})" if deployment.message else f"{name} is ready"
    if deployment.state == DeploymentPhase.KEPT:
        return f"{deployment.app}: {deployment.message}"
    if deployment.state == DeploymentPhase.FAILED:
        return f"{name} failed: {deployment.message}"
    return f"{name} accepted as deployment {deployment.deployment}"
