"""What a variant costs its node: measured where it was profiled, estimated from its file until then."""

from __future__ import annotations

from understudy.wire.records import AppVersion, Variant

# Estimates for variants without a profile, on the cautious side of what was measured with ONNX Runtime on
# CPUs: 5-10 MB load in 15-30 ms, 100 MB in 50-120 ms, 350 MB in 0.5-0.8 s; a blank worker is 39-45 MB PSS.
BLANK_WORKER_MB = 45.0
MEMORY_PER_FILE_MB = 1.5
LOAD_MS = 20.0
LOAD_MS_PER_MB = 2.0


def replica_mb(variant: Variant) -> float:
    """PSS of one replica of `variant`."""
    if variant.profile is not None:
        return variant.profile.replica_mb
    return variant.artifact.size_bytes / 1e6 * MEMORY_PER_FILE_MB + BLANK_WORKER_MB


def load_ms(variant: Variant) -> float:
    """From asking a blank worker to load `variant` to its first inference."""
    if variant.profile is not None:
        return variant.profile.load_ms
    return LOAD_MS + variant.artifact.size_bytes / 1e6 * LOAD_MS_PER_MB


def busy(app: AppVersion, variant: Variant) -> float:
    """Cores that one replica of `variant` keeps busy.

    Each replica can take over the share of another one. Nothing is known, and nothing counted, where the app
    states no rate or the variant has no profile.
    """
    if variant.profile is None or not app.requests_per_s:
        return 0.0
    return app.requests_per_s / max(1, app.replicas - 1) * variant.profile.latency_ms / 1000.0
