"""Ports for servers that are started in a moment."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from pathlib import Path

LOWEST = 10_000
OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")
OUTGOING_FROM = 32_768  # where there is no such file


def free_ports(count: int) -> list[int]:
    """TCP ports of the loopback interface on which nobody listens.

    Not from the kernel's own range: it gives the same ports to outgoing connections, so that any client may
    take one before its server is up.
    """
    highest = OUTGOING_FROM
    with suppress(OSError, ValueError, IndexError):
        highest = max(int(OUTGOING.read_text().split()[0]), LOWEST + 10 * count)
    found: list[int] = []
    for port in random.sample(range(LOWEST, highest), highest - LOWEST):
        if len(found) == count:
            break
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
    return found
