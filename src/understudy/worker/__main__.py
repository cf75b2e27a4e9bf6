"""`python -m understudy.worker ARGS`: a worker in a fresh interpreter, without walls. ARGS: `Alone`."""

from __future__ import annotations

import os
import sys

import msgspec

from understudy.adapters.doors import Doorway
from understudy.adapters.inherited import settle_inherited
from understudy.settings.worker import WorkerTuning
from understudy.wire.errors import ConfigError
from understudy.worker.process import WorkerArgs, run_worker


class Alone(msgspec.Struct, frozen=True):
    """`worker`: a name for logs. `socket`: path to listen at. `tcp_host`: listen on a free port there too."""

    worker: str
    socket: str
    tcp_host: str = ""
    settings: WorkerTuning = WorkerTuning()


def run_alone(alone: Alone) -> None:
    """As `run_worker`. Raises `ConfigError` if the addresses can't be listened at."""
    door = Doorway.open(alone.socket, alone.tcp_host)
    theirs, door.descriptors = tuple(door.descriptors), []
    if door.line is not None:  # nobody is there to make a socket anew
        door.line.close()
    try:
        run_worker(WorkerArgs(alone.worker, theirs, alone.settings))
    finally:
        door.close()


def main() -> int:
    settle_inherited()
    try:
        alone = msgspec.json.decode(sys.argv[1], type=Alone)
    except (IndexError, msgspec.DecodeError) as error:
        sys.stderr.write(f"usage: python -m understudy.worker JSON ({error})\n")
        return 2
    try:
        run_alone(alone)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # an inference that never ends must not hold the process
