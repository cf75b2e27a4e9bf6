"""What the measurements of a family say together."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from understudy.wire.records import Variant


def without_disturbance(variants: Iterable[Variant]) -> tuple[Variant, ...]:
    """The variants, none loading for longer than a larger file of the same runtime.

    A load is measured once, and whatever else a node does then only adds to it. A plan that believed it would
    begin a failover with a variant that isn't the quickest, or skip the small step altogether.
    """
    listed = tuple(variants)
    least_ms: dict[str, float] = {}  # by runtime, over the files that are as large or larger
    found: dict[str, Variant] = {}
    for variant in sorted(listed, key=lambda v: -v.artifact.size_bytes):
        profile = variant.profile
        if profile is not None:
            load_ms = min(profile.load_ms, least_ms.get(variant.runtime, profile.load_ms))
            least_ms[variant.runtime] = load_ms
            profile = msgspec.structs.replace(profile, load_ms=load_ms)
        found[variant.name] = msgspec.structs.replace(variant, profile=profile)
    return tuple(found[variant.name] for variant in listed)
