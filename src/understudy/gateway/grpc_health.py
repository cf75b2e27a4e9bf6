"""What gRPC's own tools ask of any server: health (grpc.health.v1) and which services there are (reflection).

Health of "" and of the inference service is the gateway's readiness; that of an app goes by the app's name.
"""

from __future__ import annotations

import asyncio
from typing import Any

from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from understudy.gateway.api import Api
from understudy.gateway.grpc_reading import Reading
from understudy.wire import inference
from understudy.wire.errors import Code, UnderstudyError

HEALTH = "grpc.health.v1.Health"
REFLECTION = reflection.SERVICE_NAME
WHOLE = ("", inference.SERVICE)
WATCH_S = 0.5  # between two looks for those who watch

_SERVING, _NOT_SERVING, _UNKNOWN = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
    health_pb2.HealthCheckResponse.SERVICE_UNKNOWN,
)


class HealthService:
    asked = health_pb2.HealthCheckRequest

    def __init__(self, api: Api, reading: Reading) -> None:
        self._api = api
        self._reading = reading

    def check(self, asked: Any) -> Any:
        status = self._status(asked.service)
        if status == _UNKNOWN:
            raise UnderstudyError(Code.NOT_FOUND, f"no service or model {asked.service!r}")
        return health_pb2.HealthCheckResponse(status=status)

    async def watch(self, context: Any) -> None:
        """The status now and whenever it changes; of the whole only, where callers must say who they are."""
        with self._reading.watch():
            asked = await self._reading.small(context, self.asked)
            told = None
            while True:
                known = asked.service in WHOLE or self._api.authenticator is None
                status = self._status(asked.service) if known else _UNKNOWN
                if status != told:
                    told = status
                    await context.write(health_pb2.HealthCheckResponse(status=status).SerializeToString())
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


class Reflection:
    """A stream of questions, each of which comes soon after the one before."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        for file in (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
            inference.POOL.AddSerializedFile(file.serialized_pb)
        services = (inference.SERVICE, HEALTH, REFLECTION)
        self._servicer = reflection.aio.ReflectionServicer(services, pool=inference.POOL)

    async def answer(self, context: Any) -> None:
        with self._reading.watch():
            questions = self._reading.every_small(context, reflection_pb2.ServerReflectionRequest)
            async for response in self._servicer.ServerReflectionInfo(questions, context):
                await context.write(response.SerializeToString())
