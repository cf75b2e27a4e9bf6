"""Variants that were seen to answer differently in a batch, until the target says so itself."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from understudy.core.agent import events as ev
from understudy.core.agent.replicas import Replica
from understudy.wire.messages import Target
from understudy.wire.records import BatchingVerdict, Variant, VariantKey


class Unbatched:
    def __init__(self) -> None:
        self._reasons: dict[VariantKey, str] = {}

    @property
    def view(self) -> tuple[tuple[str, int, str, str], ...]:
        """(app, version, variant, reason)"""
        return tuple((*key, reason) for key, reason in sorted(self._reasons.items()))

    def seen(self, replica: Replica | None, reason: str, replicas: Iterable[Replica]) -> list[ev.Effect]:
        """A worker stopped batching by itself; those beside it are to follow."""
        if replica is None or replica.key in self._reasons:
            return []
        self._reasons[replica.key] = reason
        others = [r for r in replicas if r.key == replica.key and r.worker and r is not replica]
        app, version, variant = replica.key
        message = f"{variant} of version {version} runs one request at a time: {reason}"
        told = ev.Tell("batching.ended", message, app, replica.worker)
        return [told, *(ev.EndBatching(other.worker, reason) for other in others)]

    def take(self, target: Target, replicas: Iterable[Replica]) -> list[ev.Effect]:
        """What the target knows needn't be remembered here, and workers that don't know it are told."""
        verdicts = {(app.app, app.version, v.name): v.verdict for app in target.apps for v in app.variants}
        self._reasons = {
            key: reason
            for key, reason in self._reasons.items()
            if (verdict := verdicts.get(key)) is not None and verdict.together
        }
        ended = {key: v.reason for key, v in verdicts.items() if v is not None and v.by == "service"}
        return [ev.EndBatching(r.worker, ended[r.key]) for r in replicas if r.worker and r.key in ended]

    def applied(self, key: VariantKey, variant: Variant) -> Variant:
        """The variant as it is to be loaded here."""
        reason = self._reasons.get(key)
        if reason is None:
            return variant
        return msgspec.structs.replace(variant, verdict=BatchingVerdict(False, "service", reason))
