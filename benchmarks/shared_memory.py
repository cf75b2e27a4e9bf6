"""600 KB from one process to another: through a Unix socket, or in shared memory whose descriptor is sent.

Stands for a 3x224x224 FP32 image between gateway and worker. Each round moves it from fresh memory of the
sender to an array of the receiver and waits for a byte back. Prints microseconds for each way.
"""

from __future__ import annotations

import mmap
import os
import socket
import statistics
import sys
from time import perf_counter

import numpy as np

IMAGE_BYTES = 3 * 224 * 224 * 4
ROUNDS, REPEATS, WARM_UP = 6, 200, 20
WAYS = ("socket", "shared memory")


def send(sock: socket.socket, way: str, image: bytes) -> None:
    """Writing `image` into the memory stands for reading it from the client's connection."""
    if way == "socket":
        memory = mmap.mmap(-1, IMAGE_BYTES)
        memory.write(image)
        sock.sendall(memory)
    else:
        descriptor = os.memfd_create("image")
        os.ftruncate(descriptor, IMAGE_BYTES)
        memory = mmap.mmap(descriptor, IMAGE_BYTES)
        memory.write(image)
        socket.send_fds(sock, [b"x"], [descriptor])
        os.close(descriptor)
    sock.recv(1)
    memory.close()


def receive(sock: socket.socket, way: str) -> bool:
    """Touch the image as an array; False at the end."""
    memory: bytearray | mmap.mmap
    if way == "socket":
        memory = bytearray(IMAGE_BYTES)
        rest = memoryview(memory)
        while rest:
            count = sock.recv_into(rest)
            if not count:
                return False
            rest = rest[count:]
    else:
        data, descriptors, _, _ = socket.recv_fds(sock, 1, 1)
        if not data:
            return False
        memory = mmap.mmap(descriptors[0], IMAGE_BYTES)
        os.close(descriptors[0])
    np.frombuffer(memory, np.float32)[::1024].sum()
    sock.send(b"k")
    return True


def measure(way: str, image: bytes) -> float:
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        while receive(theirs, way):
            pass
        os._exit(0)
    theirs.close()
    for _ in range(WARM_UP):
        send(ours, way, image)
    started_s = perf_counter()
    for _ in range(REPEATS):
        send(ours, way, image)
    mean_us = (perf_counter() - started_s) / REPEATS * 1e6
    ours.close()
    os.waitpid(pid, 0)
    return mean_us


def main() -> None:
    image = os.urandom(IMAGE_BYTES)
    measured: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way, values in measured.items():
            values.append(measure(way, image))
    for way, values in measured.items():
        spread = f"{min(values):.0f} to {max(values):.0f}"
        sys.stdout.write(f"{way}: median {statistics.median(values):.0f} us ({spread}), {ROUNDS} rounds\n")


if __name__ == "__main__":
    main()
