"""APP.toml: what a user deploys."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from understudy.settings import (
    Count,
    Datatype,
    FallbackLink,
    Fraction,
    Name,
    NonNegative,
    Positive,
    Settings,
)
from understudy.wire.records import Criticality


class VariantManifest(Settings, frozen=True):
    name: Name
    runtime: Literal["onnx", "python"]
    artifact: str  # file, or directory with a model.py for the python runtime; relative to the manifest
    accuracy: Fraction
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    memory_limit_mb: Positive | None = None
    load_timeout_s: Positive | None = None  # how long loading may take; default: the cluster's (agent)


class TensorSettings(Settings, frozen=True):
    """An input or output, where the runtime doesn't know it from the model itself."""

    name: str
    datatype: Datatype
    shape: tuple[Annotated[int, Meta(ge=-1)], ...]  # -1: any length


class ClientRateSettings(Settings, frozen=True):
    """What one client may ask of an app, at each process of a gateway. Beyond it: 429."""

    requests_per_s: Positive
    burst: Count = 10  # at once, after a pause


class BatchingSettings(Settings, frozen=True):
    rows_max: Count = 32
    wait_us: Annotated[int, Meta(ge=0)] = 0  # for more rows, when fewer are there


class AppManifest(Settings, frozen=True):
    """APP.toml: what a user deploys."""

    name: Name
    variants: Annotated[tuple[VariantManifest, ...], Meta(min_length=1, max_length=32)]
    criticality: Criticality = Criticality.STANDARD
    weight: Positive = 1.0
    replicas: Count = 1
    idempotent: bool = True
    deadline_ms: Positive = 1000.0
    objective_ms: Positive | None = None  # latency to keep, by slower variants never; default: deadline / 2
    brownout: bool = True  # when overloaded for long, ready smaller variants answer what would be shed
    client_rate: ClientRateSettings | None = None
    requests_per_s: NonNegative = 0.0  # expected of all clients; 0: not stated, so it takes no compute
    inputs: tuple[TensorSettings, ...] = ()
    outputs: tuple[TensorSettings, ...] = ()
    batching: BatchingSettings = BatchingSettings()
    static: dict[str, Any] | None = None
    probe: dict[str, Any] | None = None
    fallback: tuple[FallbackLink, ...] | None = None  # default: smaller-variant, previous-version, static
