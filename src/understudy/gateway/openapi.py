"""The gateway's REST API as an OpenAPI 3.1 document, with the limits of the gateway that serves it.

The one place where it is written down: `GET /openapi.json` serves it, and docs/reference/openapi.json is it
with the default limits. What is said of paths here is what `api` does.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, get_args

import understudy
from understudy.gateway.answers import JSON_LENGTH
from understudy.settings import Datatype
from understudy.settings.gateway import OTHER_BODY_BYTES_MAX, GatewayTuning
from understudy.wire.statuses import STATUSES

Json = dict[str, Any]

# What a client can meet wherever it asks: malformed, slow, too large, too many, from another site's page, by
# a name that isn't the gateway's.
ANYWHERE = (400, 403, 408, 413, 421, 431, 503)
INFERENCE = (*ANYWHERE, 415, *(statuses.http for statuses in STATUSES.values()))
JSON_LENGTH_NAME = JSON_LENGTH.decode()


def document(settings: GatewayTuning) -> Json:
    """The document as JSON values."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Understudy",
            "version": understudy.__version__,
            "description": "Open Inference Protocol v2 over HTTP, with Triton's extensions "
            "for binary tensors, classification, model configuration, statistics and repository.",
        },
        "paths": {**_server_paths(), **_model_paths(settings), **_repository_paths(settings)},
        "components": {
            "schemas": {**_inference_schemas(), **_description_schemas()},
            "securitySchemes": {"operator": {"type": "http", "scheme": "bearer"}},
        },
    }


# paths


def _server_paths() -> Json:
    return {
        "/v2": _get("serverMetadata", "Name, version and extensions of the server", _ref("Server")),
        "/v2/health/live": _get("serverLive", "Does the gateway run?", _ref("Live")),
        "/v2/health/ready": _get(
            "serverReady",
            "Can it answer for at least one app?",
            _ref("Ready"),
            not_ready=_ref("NotReady"),
        ),
        "/understudy/failures": _for_operators("failures", "The newest requests that failed by our fault"),
        "/understudy/status": _for_operators("status", "What this gateway sees, for operators"),
        "/openapi.json": _get("openapi", "This document", {"type": "object"}),
    }


def _for_operators(operation_id: str, summary: str) -> Json:
    item = _get(operation_id, summary, {"type": "object"}, more=(401,))
    item["get"]["security"] = [{"operator": []}]
    return item


def _model_paths(settings: GatewayTuning) -> Json:
    paths: Json = {
        "/v2/models": _get("models", "Names of all apps, as KServe lists them", _ref("Models")),
        "/v2/models/stats": _get("statistics", "Statistics of all apps, by this gateway", _ref("Statistics")),
    }
    for path, suffix, parameters in (
        ("/v2/models/{model}", "", [_path("model")]),
        ("/v2/models/{model}/versions/{version}", "Version", [_path("model"), _path("version")]),
    ):
        described = {
            "": _get("model", "Inputs and outputs", _ref("Model"), more=(404,)),
            "/ready": _get(
                "modelReady",
                "Did a replica answer a real inference just now?",
                _ref("ModelReady"),
                more=(404,),
                not_ready=_ref("ModelNotReady"),
            ),
            "/config": _get("modelConfiguration", "As Triton's ModelConfig", _ref("Config"), more=(404,)),
            "/stats": _get("modelStatistics", "Statistics by this gateway", _ref("Statistics"), more=(404,)),
            "/infer": {"post": _infer(settings)},
        }
        for end, item in described.items():
            for operation in item.values():
                operation["operationId"] += suffix
            paths[path + end] = {"parameters": parameters, **item}
    return paths


def _repository_paths(settings: GatewayTuning) -> Json:
    bytes_max = min(settings.http.body_bytes_max, OTHER_BODY_BYTES_MAX)
    model = [_path("model")]
    return {
        "/v2/repository/index": {
            "post": {
                **_operation("repositoryIndex", "Every app and whether it can answer", _ref("Index")),
                "requestBody": _body(bytes_max, _ref("IndexRequest"), required=False),
            }
        },
        "/v2/repository/models/{model}/load": {
            "parameters": model,
            "post": {
                **_operation(
                    "repositoryLoad",
                    "Nothing to do for an app that answers: what is loaded where is decided by the plan",
                    {"type": "object"},
                    more=(404,),
                ),
                "requestBody": _body(bytes_max, {"type": "object"}, required=False),
            },
        },
        "/v2/repository/models/{model}/unload": {
            "parameters": model,
            "post": {
                "operationId": "repositoryUnload",
                "summary": "Refused: every deployed app is kept answering",
                "responses": _errors((*ANYWHERE, 404, 405, 409)),
                "requestBody": _body(bytes_max, {"type": "object"}, required=False),
            },
        },
    }


def _infer(settings: GatewayTuning) -> Json:
    length = {"type": "integer", "minimum": 0, "maximum": settings.http.body_bytes_max}
    timeout_ms = {"type": "number", "exclusiveMinimum": 0, "maximum": settings.admission.deadline_ms_max}
    operation = _operation("infer", "Run a model on input tensors", _ref("InferResponse"), more=INFERENCE)
    answer = operation["responses"]["200"]
    answer["content"]["application/octet-stream"] = {}
    answer["headers"] = {
        "Understudy-Variant": {"description": "which variant answered", "schema": {"type": "string"}},
        "Understudy-Version": {"description": "of the app", "schema": {"type": "string"}},
        "Understudy-Degraded": {
            "description": "why it isn't the full-size variant; absent if it is",
            "schema": {"type": "string"},
        },
        JSON_LENGTH_NAME: {"description": "bytes of JSON before binary tensors", "schema": length},
    }
    body = _body(settings.http.body_bytes_max, _ref("InferRequest"), required=True)
    body["content"]["application/octet-stream"] = {}
    return {
        **operation,
        "parameters": [
            _header("Understudy-Timeout-Ms", "until which the client waits", timeout_ms),
            _header(JSON_LENGTH_NAME, "bytes of JSON before binary tensors; 0: the only input alone", length),
            _header(
                "Content-Encoding", "of the body", {"type": "string", "enum": ["identity", "gzip", "deflate"]}
            ),
        ],
        "requestBody": body,
    }


# parts of operations


def _get(
    operation_id: str, summary: str, schema: Json, *, more: Iterable[int] = (), not_ready: Json | None = None
) -> Json:
    operation = _operation(operation_id, summary, schema, more)
    if not_ready is not None:
        operation["responses"]["503"] = _response("not ready", not_ready)
    return {"get": operation}


def _operation(operation_id: str, summary: str, schema: Json, more: Iterable[int] = ()) -> Json:
    responses = {"200": _response("OK", schema), **_errors((*ANYWHERE, 405, *more))}
    return {"operationId": operation_id, "summary": summary, "responses": responses}


def _errors(statuses: Iterable[int]) -> Json:
    return {
        str(status): _response(HTTPStatus(status).phrase, _ref("Error")) for status in sorted(set(statuses))
    }


def _response(description: str, schema: Json) -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _body(bytes_max: int, schema: Json, *, required: bool) -> Json:
    return {
        "description": f"{bytes_max} bytes at most, also when decompressed",
        "required": required,
        "content": {"application/json": {"schema": schema}},
    }


def _path(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _header(name: str, description: str, schema: Json) -> Json:
    return {"name": name, "in": "header", "description": description, "schema": schema}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


# schemas


def _object(properties: Json, *optional: str) -> Json:
    """Everything is required but what is named `optional`."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def _array(items: Json, **more: Any) -> Json:
    return {"type": "array", "items": items, **more}


TEXT: Json = {"type": "string"}
COUNT: Json = {"type": "integer", "minimum": 0}
FLAG: Json = {"type": "boolean"}


def _inference_schemas() -> Json:
    shape = _array({"type": "integer", "minimum": 0, "maximum": 2**31 - 1}, maxItems=32)
    tensor = {
        "name": TEXT,
        "datatype": _ref("Datatype"),
        "shape": shape,
        "parameters": _ref("Parameters"),
        "data": {
            "type": "array",
            "description": "row-major, flat or nested; absent for a tensor in binary form",
        },
    }
    output = _object({"name": TEXT, "parameters": _ref("Parameters")}, "parameters")
    return {
        "Error": _object({"error": {"type": "string", "minLength": 1}}),
        "Datatype": {"type": "string", "enum": list(get_args(Datatype))},
        "Parameters": {
            "type": "object",
            "additionalProperties": {"type": ["string", "number", "boolean"]},
            "description": "known: binary_data_size of an input; binary_data and classification of an "
            "output; binary_data_output of the request",
        },
        "Tensor": _object(tensor, "parameters", "data"),
        "InferRequest": _object(
            {
                "id": TEXT,
                "parameters": _ref("Parameters"),
                "inputs": _array(_ref("Tensor"), minItems=1),
                "outputs": _array(output),
            },
            "id",
            "parameters",
            "outputs",
        ),
        "InferResponse": _object(
            {"model_name": TEXT, "model_version": TEXT, "id": TEXT, "outputs": _array(_ref("Tensor"))}, "id"
        ),
    }


def _configured_tensor() -> Json:
    return _object(
        {
            "name": TEXT,
            "data_type": TEXT,
            "dims": _array({"type": "integer", "minimum": -1}),
            "optional": {"const": True},
            "format": TEXT,
            "label_filename": TEXT,
        },
        "optional",
        "format",
        "label_filename",
    )


def _description_schemas() -> Json:
    tensor = _object(
        {
            "name": TEXT,
            "datatype": _ref("Datatype"),
            "shape": _array({"type": "integer", "minimum": -1}),
            "optional": {"const": True, "description": "of an input that a request may leave out"},
            "labels": {**_array(TEXT), "description": "of the classes that are an output's columns"},
        },
        "optional",
        "labels",
    )
    ready: Json = {"const": True}
    not_ready: Json = {"ready": {"const": False}, "error": TEXT}
    statistics = _object(
        {
            "name": TEXT,
            "version": TEXT,
            "last_inference": {**COUNT, "description": "ms since 1970; 0: none yet"},
            "inference_count": {**COUNT, "description": "requests, whatever their rows"},
            "execution_count": {**COUNT, "description": "the same: a batch counts once per request"},
            "inference_stats": {"type": "object", "additionalProperties": _ref("Duration")},
            "batch_stats": {"type": "array", "maxItems": 0},
        }
    )
    indexed = {"name": TEXT, "version": TEXT, "state": {"enum": ["READY", "UNAVAILABLE"]}, "reason": TEXT}
    return {
        "Live": _object({"live": ready}),
        "Ready": _object({"ready": ready}),
        "NotReady": _object(not_ready, "ready"),
        "ModelReady": _object({"name": TEXT, "ready": ready}),
        "ModelNotReady": _object({"name": TEXT, **not_ready}, "name", "ready"),
        "Server": _object({"name": TEXT, "version": TEXT, "extensions": _array(TEXT)}),
        "Model": _object(
            {
                "name": TEXT,
                "versions": _array(TEXT),
                "platform": TEXT,
                "inputs": _array(tensor),
                "outputs": _array(tensor),
            }
        ),
        "Config": _object(
            {
                "name": TEXT,
                "platform": TEXT,
                "backend": TEXT,
                "version_policy": {"type": "object"},
                "max_batch_size": COUNT,
                "input": _array(_configured_tensor()),
                "output": _array(_configured_tensor()),
                "dynamic_batching": {"type": "object"},
            },
            "dynamic_batching",
        ),
        "Duration": _object({"count": COUNT, "ns": COUNT}),
        "Statistics": _object({"model_stats": _array(statistics)}),
        "IndexRequest": _object({"ready": FLAG}, "ready"),
        "Index": _array(_object(indexed)),
        "Models": _object({"models": _array(TEXT)}),
    }
