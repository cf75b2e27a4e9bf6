"""Ray Serve with the waiting model: the port as argument.

`max_queued_requests` is its means against overload. With those it runs, 40 are answered within the 250 ms
that clients wait.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.peers.accelerator import Accelerator

REPLICAS = 2


@serve.deployment(
    num_replicas=REPLICAS,
    max_ongoing_requests=5,
    max_queued_requests=35,
    health_check_period_s=1,
    health_check_timeout_s=1,
    ray_actor_options={"num_cpus": 0.5},
)
class Waiting:
    def __init__(self) -> None:
        self.model = Accelerator()

    async def __call__(self, request: Request) -> dict[str, Any]:
        return self.model.answer(json.loads(await request.body()))


def main(port: int) -> None:
    ray.init(num_cpus=REPLICAS, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"enable_access_log": False})
    serve.run(Waiting.bind(), blocking=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
