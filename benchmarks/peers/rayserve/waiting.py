"""Ray Serve with the waiting model: the port as argument.

`max_queued_requests` is its means against overload: 40 requests at a replica are answered within the 250 ms
for which clients wait. The model waits in a thread, because its docs say not to block a replica's event loop.
"""

from __future__ import annotations

import asyncio
import json
import sys
from concurrent.futures import ThreadPoolExecutor
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
        self.thread = ThreadPoolExecutor(max_workers=1)

    async def __call__(self, request: Request) -> dict[str, Any]:
        content = json.loads(await request.body())
        return await asyncio.get_running_loop().run_in_executor(self.thread, self.model.answer, content)


def main(port: int) -> None:
    ray.init(num_cpus=REPLICAS, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"enable_access_log": False})
    serve.run(Waiting.bind(), blocking=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
