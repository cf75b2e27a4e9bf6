"""What a manifest promises, held against what was measured, before its version is committed."""

from __future__ import annotations

from understudy.wire.errors import InvalidArgument
from understudy.wire.records import AppVersion, Profile, Variant
from understudy.wire.statics import check_static

Measured = list[tuple[Variant, Profile]]
SEEN = ("rehearsal", "service")  # ways in which a verdict on batching follows from the model's answers


def check_promises(app: AppVersion) -> tuple[str, ...]:
    """Warnings, a sentence each. Raises `InvalidArgument` for a promise that can't be kept.

    `app` is as it would be committed: with profiles, the common signature, and variants best first.
    """
    if app.static is not None:
        check_static(app.static, app.outputs)
    measured = [(variant, variant.profile) for variant in app.variants if variant.profile is not None]
    _check_memory(measured)
    return (*_objective(app, measured), *_deadline(app, measured), *_batching(app))


def _batching(app: AppVersion) -> list[str]:
    """What rehearsal saw of the model itself; what the manifest or the graph says is no news."""
    found = [(v.name, v.verdict) for v in app.variants if v.verdict is not None and not v.verdict.together]
    return [f"variant {name!r} runs {verdict.sentence}" for name, verdict in found if verdict.by in SEEN]


def _check_memory(measured: Measured) -> None:
    for variant, profile in measured:
        limit_mb = variant.memory_limit_mb
        if limit_mb is not None and profile.replica_mb > limit_mb:
            raise InvalidArgument(
                f"variants: {variant.name!r}: memory_limit_mb is {limit_mb:g}, and a replica takes "
                f"{profile.replica_mb:.0f} MB after one inference; raise memory_limit_mb"
            )


def _objective(app: AppVersion, measured: Measured) -> list[str]:
    objective_ms = app.objective_ms
    if objective_ms is None or not measured:
        return []
    slow = [(v, p) for v, p in measured if p.latency_ms > objective_ms]
    if len(slow) == len(measured):
        quickest, profile = min(slow, key=lambda each: each[1].latency_ms)
        raise InvalidArgument(
            f"objective_ms is {objective_ms:g}, and no variant keeps it: one inference of {quickest.name!r}, "
            f"the quickest, took {profile.latency_ms:.1f} ms; raise objective_ms or add a quicker variant"
        )
    said = [
        f"variant {v.name!r} is never placed: one inference took {p.latency_ms:.1f} ms, "
        f"objective_ms is {objective_ms:g}"
        for v, p in slow
    ]
    if objective_ms > app.deadline_ms:
        said.append(f"objective_ms is {objective_ms:g}, but deadline_ms is {app.deadline_ms:g}, which counts")
    return said


def _deadline(app: AppVersion, measured: Measured) -> list[str]:
    slow = [(v, p) for v, p in measured if p.latency_ms > app.deadline_ms]
    if slow and len(slow) == len(measured):
        quickest, profile = min(slow, key=lambda each: each[1].latency_ms)
        raise InvalidArgument(
            f"deadline_ms is {app.deadline_ms:g}, and no variant can answer within it: one inference of "
            f"{quickest.name!r}, the quickest, took {profile.latency_ms:.1f} ms; raise deadline_ms"
        )
    return [
        f"variant {v.name!r} can't answer within deadline_ms, {app.deadline_ms:g}: one inference took "
        f"{p.latency_ms:.1f} ms; raise deadline_ms, or leave it out with objective_ms"
        for v, p in slow
        if app.objective_ms is None or p.latency_ms <= app.objective_ms
    ]
