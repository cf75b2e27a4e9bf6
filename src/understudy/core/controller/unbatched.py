"""What agents saw of batching at work, written into the release that they run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from understudy.core.controller.stored import Release
from understudy.wire.messages import NodeState
from understudy.wire.records import BatchingVerdict


def changed_releases(
    releases: Mapping[tuple[str, int], Release], state: NodeState
) -> list[tuple[Release, str, str]]:
    """Releases with a variant that is batched no more, that variant, and why."""
    changed: dict[tuple[str, int], Release] = {}
    found = []
    for app, version, name, reason in state.unbatched:
        release = changed.get((app, version)) or releases.get((app, version))
        variant = release.app.variant(name) if release else None
        if release is None or variant is None or variant.verdict is None or not variant.verdict.together:
            continue
        verdict = BatchingVerdict(False, "service", reason)
        variants = tuple(
            msgspec.structs.replace(v, verdict=verdict) if v.name == name else v for v in release.app.variants
        )
        known = msgspec.structs.replace(release.app, variants=variants)
        updated = msgspec.structs.replace(release, app=known)
        changed[(app, version)] = updated
        found.append((updated, name, reason))
    return found


def ended_at_work(releases: Iterable[Release], digest: str) -> BatchingVerdict | None:
    """What was seen of the same artifact in a version that is remembered: rehearsal can't outweigh it."""
    verdicts = (v.verdict for r in releases for v in r.app.variants if v.artifact.digest == digest)
    return next((verdict for verdict in verdicts if verdict is not None and verdict.by == "service"), None)
