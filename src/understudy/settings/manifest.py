"""APP.toml: what a user deploys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from understudy.settings import (
    AppPattern,
    Count,
    Datatype,
    FallbackLink,
    Fraction,
    Length,
    Name,
    NonNegative,
    Positive,
    Settings,
)
from understudy.settings.runtimes import check_runtime
from understudy.wire.documents import check_document
from understudy.wire.errors import InvalidArgument
from understudy.wire.records import Criticality, Finite, fallback_mistake
from understudy.wire.statics import FIELDS, check_static, read_static

PathText = Annotated[str, Meta(min_length=1, max_length=4096)]


class VariantManifest(Settings, frozen=True):
    name: Name
    runtime: Name  # onnx or python
    # A file, or a directory with a model.onnx or model.py; relative to the manifest.
    artifact: PathText
    accuracy: Fraction
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    memory_limit_mb: Positive | None = None
    requirements: PathText | None = None  # file of packages as pip takes it; relative to the manifest
    wheels: PathText | None = None  # directory that has them as wheels: no registry is asked
    python: PathText | None = None  # instead: an interpreter that every node has, with Understudy installed
    load_timeout_s: Positive | None = None  # how long loading may take; default: the cluster's (agent)

    def __post_init__(self) -> None:
        check_runtime(self.runtime)


class TensorSettings(Settings, frozen=True, omit_defaults=True):
    """An input or output, where the runtime doesn't know it from the model itself."""

    name: Annotated[str, Meta(min_length=1, max_length=1024)]
    datatype: Datatype
    shape: Annotated[tuple[Length, ...], Meta(max_length=32)]  # -1: any length
    optional: bool = False  # inputs only: requests may leave it out, and so may what `predict` is given
    format: Literal["", "FORMAT_NCHW", "FORMAT_NHWC"] = ""  # inputs only: of an image, for Triton's clients


class OutputSettings(TensorSettings, frozen=True, omit_defaults=True):
    """An output, where the runtime doesn't know it from the model itself."""

    # Of the classes that are its columns, in their order.
    labels: Annotated[tuple[Annotated[str, Meta(max_length=1024)], ...], Meta(max_length=100_000)] = ()
    finite: Finite = Finite.REQUIRED  # "allowed": NaN and infinity may come; in JSON they are null


Outputs = Annotated[tuple[OutputSettings, ...], Meta(max_length=1024)]


class OutputsSettings(Settings, frozen=True):
    """What is true for all outputs."""

    finite: Finite = Finite.REQUIRED  # "allowed": NaN and infinity may come; in JSON they are null
    tensors: Outputs = ()


class ClientRateSettings(Settings, frozen=True):
    """What one client may ask of an app, at each process of a gateway. Beyond it: 429."""

    requests_per_s: Annotated[float, Meta(ge=0.001, le=1e9)]
    burst: Count = 10  # at once, after a pause


class BatchingSettings(Settings, frozen=True):
    rows_max: Annotated[int, Meta(ge=1, le=2**20)] = 32
    wait_us: Annotated[int, Meta(ge=0, le=10_000_000)] = 0  # for more rows, when fewer are there
    mode: Literal["auto", "never", "always"] = "auto"  # auto: share a batch where that's shown to be harmless
    tolerance: Positive | None = None  # of an answer's magnitude; default: by datatype, 0.0001 for FP32


StandInFor = Annotated[tuple[AppPattern, ...], Meta(max_length=256)]
FallbackChain = Annotated[tuple[FallbackLink, ...], Meta(max_length=32)]


class AppManifest(Settings, frozen=True):
    """APP.toml: what a user deploys."""

    name: Name
    variants: Annotated[tuple[VariantManifest, ...], Meta(min_length=1, max_length=32)]
    criticality: Criticality = Criticality.STANDARD
    weight: Annotated[float, Meta(ge=1e-6, le=1e6)] = 1.0
    replicas: Annotated[int, Meta(ge=1, le=1000)] = 1
    idempotent: bool = True
    deadline_ms: Positive = 1000.0
    objective_ms: Positive | None = None  # latency to keep, by slower variants never; default: deadline / 2
    brownout: bool = True  # when overloaded for long, ready smaller variants answer what would be shed
    client_rate: ClientRateSettings | None = None
    stand_in_for: StandInFor = ()  # apps whose clients it answers, whatever else they may ask
    network: bool = False  # whether its models may use the network
    requests_per_s: NonNegative = 0.0  # expected of all clients; 0: not stated, so it takes no compute
    inputs: Annotated[tuple[TensorSettings, ...], Meta(max_length=1024)] = ()
    outputs: Outputs | OutputsSettings = ()  # [[outputs]], or [outputs] for all of them
    missing: Literal["refused", "nan"] = "refused"  # nan: so the model gets null and NaN of JSON requests
    batching: BatchingSettings = BatchingSettings()
    static: dict[str, Any] | None = None
    probe: dict[str, Any] | None = None
    fallback: FallbackChain | None = None  # default: smaller-variant, previous-version, static

    @property
    def all_outputs(self) -> OutputsSettings:
        """In one form."""
        outputs = self.outputs
        return outputs if isinstance(outputs, OutputsSettings) else OutputsSettings(tensors=outputs)


REQUEST_FIELDS = frozenset({"id", "inputs", "outputs", "parameters"})


def mistakes(
    manifest: AppManifest,
    static_bytes_max: int = 64 * 1024,
    probe_bytes_max: int = 8 * 1024**2,
    options_bytes_max: int = 64 * 1024,
) -> Iterator[str]:
    """What the types can't say and no cluster is needed for, the field first: one in each of its parts."""
    names: set[str] = set()
    for index, variant in enumerate(manifest.variants):
        if variant.name in names:
            yield f"variants[{index}].name: {variant.name!r} is used twice"
        names.add(variant.name)
        yield from _refused(check_document, f"variants[{index}].options", variant.options, options_bytes_max)
        yield from _refused(_check_environment, f"variants[{index}]", variant)
    outputs = manifest.all_outputs.tensors
    for side, tensors in (("inputs", manifest.inputs), ("outputs", outputs)):
        declared = [tensor.name for tensor in tensors]
        for index, name in enumerate(declared):
            if name in declared[:index]:
                yield f"{side}[{index}].name: {name!r} is used twice"
    for index, output in enumerate(outputs):
        if output.optional:
            yield f"outputs[{index}].optional: only inputs can be left out"
        if output.format:
            yield f"outputs[{index}].format: only inputs have one"
        if output.labels and output.shape[-1:] not in ((-1,), (len(output.labels),)):
            what = f"{len(output.labels)} for a last dimension of {output.shape[-1:]}"
            yield f"outputs[{index}].labels: {what}"
    if manifest.static is not None:
        yield from _refused(_check_static, manifest.static, outputs, static_bytes_max)
    if manifest.probe is not None:
        yield from _refused(_check_probe, manifest.probe, probe_bytes_max)
    if manifest.fallback is not None:
        mistake = fallback_mistake(manifest.fallback, manifest.static is not None)
        if mistake:
            yield f"fallback: {mistake}"


def _refused(check: Callable[..., None], *arguments: Any) -> Iterator[str]:
    try:
        check(*arguments)
    except InvalidArgument as error:
        yield error.message


def _check_static(static: dict[str, Any], outputs: tuple[OutputSettings, ...], bytes_max: int) -> None:
    check_document("static", static, bytes_max)
    if outputs:
        check_static(static, outputs)
    else:  # the model says which it has
        read_static(static, strict=True)


def _check_environment(field: str, variant: VariantManifest) -> None:
    if variant.python is None:
        return
    if not variant.python.startswith("/"):
        raise InvalidArgument(f"{field}.python: {variant.python!r} is no absolute path")
    if variant.requirements is not None or variant.wheels is not None:
        raise InvalidArgument(f"{field}.python: an interpreter has its own packages; name it or them")


def _check_probe(probe: dict[str, Any], bytes_max: int) -> None:
    """Only that it is a request: the replica that measures the app reads the rest, and answers it."""
    check_document("probe", probe, bytes_max)
    for name in probe.keys() - REQUEST_FIELDS:
        raise InvalidArgument(f"probe.{name}: unknown field; what follows [probe] in the file belongs to it")
    inputs = probe.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise InvalidArgument("probe.inputs: a list with at least one tensor is needed")
    for index, tensor in enumerate(inputs):
        missing = set(FIELDS) - set(tensor if isinstance(tensor, dict) else ())
        if missing:
            raise InvalidArgument(f"probe.inputs[{index}]: a tensor needs {', '.join(sorted(missing))}")
