"""`python -m understudy.worker ARGS`: a worker in a fresh interpreter. ARGS is a `WorkerArgs` as JSON."""

from __future__ import annotations

import os
import sys

import msgspec

from understudy.adapters.inherited import settle_inherited
from understudy.wire.errors import ConfigError
from understudy.worker.process import WorkerArgs, run_worker


def main() -> int:
    settle_inherited()
    try:
        args = msgspec.json.decode(sys.argv[1], type=WorkerArgs)
    except (IndexError, msgspec.DecodeError) as error:
        sys.stderr.write(f"usage: python -m understudy.worker JSON ({error})\n")
        return 2
    try:
        run_worker(args)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # an inference that never ends must not hold the process
