"""What Triton adds to the Open Inference Protocol over HTTP: configuration, statistics, repository.

Clients that were written for Triton ask for these. Answers are Triton's in form; what has no equal here
(instances, caches) is left out or zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import msgspec

from understudy.core.gateway.rotation import App
from understudy.settings.runtimes import facts_of
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.records import AppVersion, TensorSpec

EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"]


class _IndexRequest(msgspec.Struct):
    ready: bool = False  # list only what is


class _LoadRequest(msgspec.Struct):
    parameters: dict[str, msgspec.Raw] = {}


_decode_index = msgspec.json.Decoder(_IndexRequest).decode
_decode_load = msgspec.json.Decoder(_LoadRequest).decode


def configuration(spec: AppVersion) -> dict[str, Any]:
    """As Triton's ModelConfig in JSON. `dims` lack the batch dimension where there is one."""
    batched = bool(spec.inputs) and all(tensor.shape[:1] == (-1,) for tensor in spec.inputs + spec.outputs)
    runtime = facts_of(spec.full_size.runtime)
    content = {
        "name": spec.app,
        "platform": runtime.triton_platform,
        "backend": runtime.triton_backend,
        "version_policy": {"specific": {"versions": [spec.version]}},
        "max_batch_size": spec.batching.rows_max if batched else 0,
        "input": [_tensor(tensor, batched) for tensor in spec.inputs],
        "output": [_tensor(tensor, batched) for tensor in spec.outputs],
    }
    if batched:
        content["dynamic_batching"] = {"max_queue_delay_microseconds": spec.batching.wait_us}
    return content


def _tensor(spec: TensorSpec, batched: bool) -> dict[str, Any]:
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    dims = spec.shape[1:] if batched else spec.shape
    more: dict[str, Any] = {"optional": True} if spec.optional else {}
    if spec.format:
        more["format"] = spec.format
    if spec.labels:
        more["label_filename"] = f"{spec.name}.labels.txt"  # what they are is in the model's metadata
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": dims, **more}


def statistics(apps: Iterable[App], now: float, now_unix_s: float) -> dict[str, Any]:
    """What this gateway saw since it started. Requests are counted, whatever their rows and batches."""
    return {"model_stats": [_app_statistics(app, now, now_unix_s) for app in apps]}


def _app_statistics(app: App, now: float, now_unix_s: float) -> dict[str, Any]:
    answered = app.traffic.answered
    count = answered.requests
    failed = sum(stats.failed + stats.shed for stats in (app.traffic.stats, app.traffic.total))
    queued_ns, inferred_ns = answered.queue_us * 1000, answered.infer_us * 1000
    last_unix_s = now_unix_s - (now - answered.last_at) if count else 0.0
    none = {"count": 0, "ns": 0}
    return {
        "name": app.name,
        "version": str(app.spec.version),
        "last_inference": int(last_unix_s * 1000),
        "inference_count": count,
        "execution_count": count,
        "inference_stats": {
            "success": {"count": count, "ns": int(answered.total_s * 1e9)},
            "fail": {"count": failed, "ns": 0},
            "queue": {"count": count, "ns": queued_ns},
            "compute_input": {"count": count, "ns": 0},
            "compute_infer": {"count": count, "ns": inferred_ns},
            "compute_output": {"count": count, "ns": 0},
            "cache_hit": none,
            "cache_miss": none,
        },
        "batch_stats": [],
    }


def wants_ready_only(body: bytes) -> bool:
    """Of a request for the index. An empty body asks for all apps."""
    wanted = _read(_decode_index, body) if body.strip() else _IndexRequest()
    return bool(wanted.ready)


def index(apps: Iterable[App], *, ready_only: bool) -> list[dict[str, str]]:
    """Every app and whether it can answer."""
    return [
        {
            "name": app.name,
            "version": str(app.spec.version),
            "state": "READY" if app.fit else "UNAVAILABLE",
            "reason": "" if app.fit else app.health.failing if app.ready else "no replica is ready",
        }
        for app in apps
        if app.fit or not ready_only
    ]


def has_parameters(body: bytes) -> bool:
    """Of a request to load a model."""
    wanted = _read(_decode_load, body) if body.strip() else _LoadRequest()
    return bool(wanted.parameters)


def load(app: App, *, with_parameters: bool) -> None:
    """Nothing to do for an app that answers: Understudy itself decides what is loaded where."""
    if with_parameters:
        what = "a model can't be changed while it is loaded; deploy a new version instead"
        raise UnderstudyError(Code.INVALID_ARGUMENT, what)
    if not app.ready:
        raise UnderstudyError(Code.UNAVAILABLE, f"no replica of {app.name!r} is ready; it is being seen to")


def refuse_unload(app: App) -> NoReturn:
    what = f"{app.name!r} stays loaded: Understudy keeps every deployed app answering; remove the app instead"
    raise UnderstudyError(Code.CONFLICT, what)


def _read(decode: Any, body: bytes) -> Any:
    try:
        return decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UnderstudyError(Code.INVALID_ARGUMENT, f"request body: {error}") from error
