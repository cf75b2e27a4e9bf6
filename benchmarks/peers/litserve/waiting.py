"""LitServe with the waiting model: the port as argument."""

import sys

import litserve

from benchmarks.faults.accelerator import NAME
from benchmarks.peers.accelerator import Accelerator

WORKERS = 2


class WaitingApi(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = Accelerator()

    def predict(self, request):
        return self.model.answer(request)


if __name__ == "__main__":
    api = WaitingApi(api_path=f"/v2/models/{NAME}/infer")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS, restart_workers=True)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=WORKERS,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
