"""What a deployment asks for: the manifest's fields, with artifacts by digest; checked before it begins."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from understudy.settings import Count, FallbackLink, Fraction, Name, NonNegative, Positive
from understudy.settings.cluster import ClusterConfig
from understudy.wire.errors import InvalidArgument
from understudy.wire.records import (
    DEFAULT_FALLBACK,
    AppVersion,
    ArtifactRef,
    Batching,
    ClientRate,
    Criticality,
    TensorSpec,
    Variant,
    fallback_mistake,
)


class ArtifactRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    digest: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    size_bytes: Count
    file_name: Annotated[str, Meta(min_length=1, max_length=255, pattern="^[^/\0]+$")]
    format: Literal["file", "tar"] = "file"


class VariantRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: Name
    runtime: Literal["onnx", "python"]
    artifact: ArtifactRequest
    accuracy: Fraction
    options: dict[str, Any] = {}
    memory_limit_mb: Positive | None = None
    load_timeout_s: Positive | None = None


class AppRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: Name
    variants: Annotated[tuple[VariantRequest, ...], Meta(min_length=1, max_length=32)]
    criticality: Criticality = Criticality.STANDARD
    weight: Positive = 1.0
    replicas: Count = 1
    idempotent: bool = True
    deadline_ms: Positive = 1000.0
    objective_ms: Positive | None = None
    brownout: bool = True
    client_rate: ClientRate | None = None
    requests_per_s: NonNegative = 0.0
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    batching: Batching = Batching()
    static: dict[str, Any] | None = None
    probe: dict[str, Any] | None = None
    fallback: tuple[FallbackLink, ...] | None = None


def check_request(request: AppRequest, config: ClusterConfig) -> None:
    """What the types can't say. Raises `InvalidArgument`; the message begins with the field's path."""
    names = [variant.name for variant in request.variants]
    for index, variant in enumerate(request.variants):
        if variant.name in names[:index]:
            raise InvalidArgument(f"variants[{index}].name: {variant.name!r} is used twice")
        if variant.runtime == "onnx" and variant.artifact.format != "file":
            raise InvalidArgument(f"variants[{index}].artifact.format: the onnx runtime takes a single file")
    longest_ms = config.gateway.admission.deadline_ms_max
    if request.deadline_ms > longest_ms:
        raise InvalidArgument(f"deadline_ms: the cluster's limit is {longest_ms:g} ms")
    if request.batching.rows_max < 1 or request.batching.wait_us < 0:
        raise InvalidArgument("batching: rows_max must be at least 1 and wait_us at least 0")
    if request.fallback is not None:
        mistake = fallback_mistake(request.fallback, request.static is not None)
        if mistake:
            raise InvalidArgument(f"fallback: {mistake}")
    rate = request.client_rate
    if rate is not None and (rate.requests_per_s <= 0 or rate.burst < 1):
        raise InvalidArgument("client_rate: requests_per_s must be positive and burst at least 1")
    _check_tensors("static.outputs", request.static, "outputs")
    _check_tensors("probe.inputs", request.probe, "inputs")


def _check_tensors(field: str, document: dict[str, Any] | None, part: str) -> None:
    if document is None:
        return
    tensors = document.get(part)
    if not isinstance(tensors, list) or not tensors:
        raise InvalidArgument(f"{field}: a list with at least one tensor is needed")
    for index, tensor in enumerate(tensors):
        missing = {"name", "datatype", "shape", "data"} - set(tensor if isinstance(tensor, dict) else ())
        if missing:
            raise InvalidArgument(f"{field}[{index}]: a tensor needs {', '.join(sorted(missing))}")


def draft(request: AppRequest, version: int) -> AppVersion:
    """The app as asked for: nothing measured yet, variants in the order given."""
    variants = [
        Variant(
            name=v.name,
            runtime=v.runtime,
            artifact=ArtifactRef(
                v.artifact.digest, v.artifact.size_bytes, v.artifact.file_name, v.artifact.format
            ),
            accuracy=v.accuracy,
            options=v.options,
            memory_limit_mb=v.memory_limit_mb,
            load_timeout_s=v.load_timeout_s,
        )
        for v in request.variants
    ]
    return AppVersion(
        app=request.name,
        version=version,
        variants=tuple(variants),
        criticality=request.criticality,
        weight=request.weight,
        replicas=request.replicas,
        idempotent=request.idempotent,
        deadline_ms=request.deadline_ms,
        objective_ms=request.objective_ms,
        brownout=request.brownout,
        client_rate=request.client_rate,
        requests_per_s=request.requests_per_s,
        inputs=request.inputs,
        outputs=request.outputs,
        batching=request.batching,
        static=request.static,
        probe=request.probe,
        fallback=DEFAULT_FALLBACK if request.fallback is None else request.fallback,
    )


def content_digest(request: AppRequest) -> str:
    """The same for requests that mean the same, in whatever order their variants and keys were written."""
    variants = tuple(sorted(request.variants, key=lambda variant: variant.name))
    return _digest(msgspec.structs.replace(request, variants=variants))


def measuring_method(app: AppVersion, variant: Variant) -> str:
    """Names everything but the artifact that a variant's profile depends on."""
    return _digest((variant.runtime, variant.options, app.inputs, app.outputs, app.probe))[:16]


def _digest(document: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(document, order="deterministic")).hexdigest()
