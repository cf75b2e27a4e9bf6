"""gRPC's own tools: health checks as load balancers and Kubernetes make them, and reflection."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from clients_cluster import LINEAR, ClientsCluster
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVING = health_pb2.HealthCheckResponse.SERVING
INFERENCE = "inference.GRPCInferenceService"


def check(cluster: ClientsCluster, service: str) -> int:
    with grpc.insecure_channel(cluster.grpc) as channel:
        asked = health_pb2.HealthCheckRequest(service=service)
        return int(health_pb2_grpc.HealthStub(channel).Check(asked, timeout=5).status)


@pytest.mark.parametrize("service", ["", INFERENCE, LINEAR])
def test_the_whole_and_each_app_are_checked(cluster: ClientsCluster, service: str) -> None:
    assert check(cluster, service) == SERVING


def test_an_unknown_service_is_not_found(cluster: ClientsCluster) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        check(cluster, "nobody")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("service", "status"), [("", SERVING), ("nobody", health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)]
)
def test_a_watch_tells_the_status_at_once(cluster: ClientsCluster, service: str, status: int) -> None:
    async def first() -> int:
        async with grpc.aio.insecure_channel(cluster.grpc) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service))
            async with asyncio.timeout(5):
                return int((await watch.read()).status)

    assert asyncio.run(first()) == status


def test_services_and_messages_are_found_by_reflection(cluster: ClientsCluster) -> None:
    with grpc.insecure_channel(cluster.grpc) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {INFERENCE, "grpc.health.v1.Health"} <= set(database.get_services())
        pool = descriptor_pool.DescriptorPool(database)
        methods = pool.FindServiceByName(INFERENCE).methods_by_name
        assert methods["ModelInfer"].input_type.fields_by_name["model_name"].number == 1
        assert methods["ModelStreamInfer"].server_streaming
        assert pool.FindServiceByName("grpc.health.v1.Health").methods_by_name["Check"]
