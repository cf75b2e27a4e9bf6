"""What gRPC's own tools ask of any server: health (grpc.health.v1) and which services there are (reflection).

Health of "" and of the inference service is the gateway's readiness; that of an app goes by the app's name.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from understudy.gateway.api import Api
from understudy.wire import inference
from understudy.wire.errors import Code, UnderstudyError

HEALTH = "grpc.health.v1.Health"
WHOLE = ("", inference.SERVICE)
WATCH_S = 0.5  # between two looks for those who watch

_SERVING, _NOT_SERVING, _UNKNOWN = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
    health_pb2.HealthCheckResponse.SERVICE_UNKNOWN,
)


class HealthService:
    """`guarded` makes a handler of what answers a request and of what its permission is looked up by."""

    def __init__(self, api: Api, guarded: Callable[..., Any]) -> None:
        self._api = api
        self.handlers = {
            "Check": grpc.unary_unary_rpc_method_handler(
                guarded(self._check, path_of),
                request_deserializer=health_pb2.HealthCheckRequest.FromString,
                response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
            ),
            "Watch": grpc.unary_stream_rpc_method_handler(
                self._watch,
                request_deserializer=health_pb2.HealthCheckRequest.FromString,
                response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
            ),
        }

    def _check(self, asked: Any) -> Any:
        status = self._status(asked.service)
        if status == _UNKNOWN:
            raise UnderstudyError(Code.NOT_FOUND, f"no service or model {asked.service!r}")
        return health_pb2.HealthCheckResponse(status=status)

    async def _watch(self, asked: Any, context: Any) -> AsyncIterator[Any]:
        """The status now and whenever it changes; of the whole only, where callers must say who they are."""
        told = None
        while True:
            known = asked.service in WHOLE or self._api.authenticator is None
            status = self._status(asked.service) if known else _UNKNOWN
            if status != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status)
            await asyncio.sleep(WATCH_S)

    def _status(self, service: str) -> int:
        if service in WHOLE:
            ready = self._api.ready
        elif service in self._api.gateway.apps:
            ready = self._api.gateway.apps[service].fit
        else:
            return int(_UNKNOWN)
        return int(_SERVING if ready else _NOT_SERVING)


def path_of(asked: Any) -> str:
    """The path over HTTP whose permission is asked for."""
    return "/v2/health/ready" if asked.service in WHOLE else f"/v2/models/{asked.service}/ready"


def enable_reflection(server: Any) -> None:
    for file in (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        inference.POOL.AddSerializedFile(file.serialized_pb)
    services = (inference.SERVICE, HEALTH, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(services, server, inference.POOL)
