"""What a deployment asks for: the manifest's fields, with artifacts by digest; checked before it begins."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import prod
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from understudy.config import explain
from understudy.settings import AppPattern, Count, FallbackLink, Fraction, Name, NonNegative, Positive
from understudy.settings.cluster import ClusterConfig
from understudy.settings.manifest import AppManifest, mistakes
from understudy.settings.runtimes import check_runtime
from understudy.wire.documents import check_document
from understudy.wire.errors import Code, InvalidArgument, UnderstudyError
from understudy.wire.records import (
    DEFAULT_FALLBACK,
    AppVersion,
    ArtifactRef,
    Batching,
    ClientRate,
    Criticality,
    Environment,
    Finite,
    TensorSpec,
    Variant,
)

LIMIT_LATER = 2**63


class ArtifactRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    digest: Annotated[str, Meta(pattern="^[0-9a-f]{64}$(?!\n)")]
    size_bytes: Count
    file_name: Annotated[str, Meta(min_length=1, max_length=255, pattern="^[^/\x00-\x1f\x7f]+$(?!\n)")]
    format: Literal["file", "tar"] = "file"


class VariantRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: Name
    runtime: Name
    artifact: ArtifactRequest
    accuracy: Fraction
    options: dict[str, Any] = {}
    memory_limit_mb: Positive | None = None
    load_timeout_s: Positive | None = None
    wheels: ArtifactRequest | None = None  # its packages, a tar file of them
    python: str | None = None

    @property
    def environment(self) -> Environment | None:
        if self.wheels is None and not self.python:
            return None
        return Environment(_ref(self.wheels) if self.wheels is not None else None, self.python or "")

    def __post_init__(self) -> None:
        check_runtime(self.runtime)


class OutputsRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What is true for all outputs."""

    finite: Finite = Finite.REQUIRED
    tensors: tuple[TensorSpec, ...] = ()


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
    stand_in_for: tuple[AppPattern, ...] = ()
    network: bool = False
    requests_per_s: NonNegative = 0.0
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] | OutputsRequest = ()
    missing: Literal["refused", "nan"] = "refused"
    batching: Batching = Batching()
    static: dict[str, Any] | None = None
    probe: dict[str, Any] | None = None
    fallback: tuple[FallbackLink, ...] | None = None

    @property
    def all_outputs(self) -> OutputsRequest:
        """In one form."""
        outputs = self.outputs
        return outputs if isinstance(outputs, OutputsRequest) else OutputsRequest(tensors=outputs)


def check_request(request: AppRequest, config: ClusterConfig) -> None:
    """What the types can't say. Raises `InvalidArgument`; the message begins with the field's path."""
    tuning = config.controller
    found = mistakes(
        _as_manifest(request),
        static_bytes_max=tuning.static_bytes_max,
        probe_bytes_max=tuning.probe_bytes_max,
        options_bytes_max=tuning.options_bytes_max,
    )
    for mistake in found:
        raise InvalidArgument(mistake)
    longest_ms = config.gateway.admission.deadline_ms_max
    if request.deadline_ms > longest_ms:
        raise InvalidArgument(f"deadline_ms: the cluster's limit is {longest_ms:g} ms")
    body_bytes_max = config.gateway.http.body_bytes_max
    for index, spec in enumerate(request.inputs):
        elements = prod(1 if length == -1 else length for length in spec.shape)
        if elements > body_bytes_max:  # and an element takes a byte at least
            what = f"{elements} elements are more than a request may have bytes"
            raise InvalidArgument(f"inputs[{index}].shape: {what} (gateway.http.body_bytes_max)")


def check_size(app: AppVersion, apps: Mapping[str, AppVersion], bytes_max: int) -> None:
    """Raises TOO_LARGE if `app` makes all `apps` too large for a message that tells of them."""
    size_bytes = sum(len(msgspec.msgpack.encode(each)) for each in {**apps, app.app: app}.values())
    if size_bytes > bytes_max:
        raise UnderstudyError(
            Code.TOO_LARGE,
            "all apps together would have more than controller.apps_bytes_max; shorten what is long in "
            "this one: its probe, labels, static answer or options",
            size_bytes=size_bytes,
            apps_bytes_max=bytes_max,
        )


def _as_manifest(request: AppRequest) -> AppManifest:
    """The same limits for what comes over HTTP as for a file. Raises `InvalidArgument`."""
    for index, variant in enumerate(request.variants):  # before anything walks through them
        check_document(f"variants[{index}].options", variant.options, LIMIT_LATER)
    check_document("static", request.static, LIMIT_LATER)
    check_document("probe", request.probe, LIMIT_LATER)
    fields = msgspec.to_builtins(request)
    for variant in fields["variants"]:
        variant["artifact"] = variant["artifact"]["file_name"]
        if variant["wheels"] is not None:
            variant["wheels"] = variant["wheels"]["file_name"]
    try:
        return msgspec.convert(fields, AppManifest)
    except msgspec.ValidationError as error:
        raise InvalidArgument(explain(str(error), AppManifest)) from error


def draft(request: AppRequest, version: int) -> AppVersion:
    """The app as asked for: nothing measured yet, variants in the order given."""
    variants = [
        Variant(
            name=v.name,
            runtime=v.runtime,
            artifact=_ref(v.artifact),
            accuracy=v.accuracy,
            options=v.options,
            memory_limit_mb=v.memory_limit_mb,
            environment=v.environment,
            load_timeout_s=v.load_timeout_s,
            network=request.network,
        )
        for v in request.variants
    ]
    outputs = request.all_outputs
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
        stand_in_for=request.stand_in_for,
        requests_per_s=request.requests_per_s,
        inputs=request.inputs,
        outputs=outputs.tensors,
        batching=request.batching,
        static=request.static,
        probe=request.probe,
        fallback=DEFAULT_FALLBACK if request.fallback is None else request.fallback,
        finite=outputs.finite,
        missing=request.missing,
    )


def _ref(artifact: ArtifactRequest) -> ArtifactRef:
    return ArtifactRef(artifact.digest, artifact.size_bytes, artifact.file_name, artifact.format)


def content_digest(request: AppRequest) -> str:
    """The same for requests that mean the same, in whatever order their variants and keys were written."""
    variants = tuple(sorted(request.variants, key=lambda variant: variant.name))
    return _digest(msgspec.structs.replace(request, variants=variants))


def measuring_method(app: AppVersion, variant: Variant) -> str:
    """Names everything but the artifact that a variant's profile and verdict on batching depend on."""
    batching = msgspec.structs.replace(app.batching, wait_us=0)
    described = (
        variant.runtime,
        variant.options,
        app.inputs,
        app.outputs,
        app.probe,
        app.finite,
        app.missing,
        batching,
    )
    return _digest((*described, variant.environment_key) if variant.environment else described)[:16]


def _digest(document: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(document, order="deterministic")).hexdigest()
