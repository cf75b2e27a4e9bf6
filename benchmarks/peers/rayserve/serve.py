"""Ray Serve with both models: the ports for HTTP and gRPC as arguments.

A replica for each core, no log of accesses; what else its docs recommend is set by environment variables.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import ray
from ray import serve
from ray.serve.config import gRPCOptions
from starlette.requests import Request

from benchmarks.peers.inference import Model, rows_of_bytes, rows_of_json
from benchmarks.peers.rayserve.grpc_service import answer_of, rows_of

CORES = 2
ADD_SERVICE = "benchmarks.peers.rayserve.grpc_service.add_to_server"


@serve.deployment(num_replicas=CORES, max_ongoing_requests=100, ray_actor_options={"num_cpus": 0.5})
class Models:
    def __init__(self) -> None:
        self.digits = Model("digits")
        self.image = Model("image")

    async def __call__(self, request: Request) -> dict[str, Any]:
        body = await request.body()
        if request.url.path.startswith("/v2/models/image/"):
            return self.image.answer(rows_of_bytes(body))
        return self.digits.answer(rows_of_json(json.loads(body)))

    async def ModelInfer(self, request: Any) -> Any:
        return answer_of(self.digits.infer(rows_of(request)))


def main(port: int, grpc_port: int) -> None:
    ray.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False)
    serve.start(
        http_options={"host": "127.0.0.1", "port": port},
        grpc_options=gRPCOptions(port=grpc_port, grpc_servicer_functions=[ADD_SERVICE]),
        logging_config={"enable_access_log": False},
    )
    serve.run(Models.bind(), blocking=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
