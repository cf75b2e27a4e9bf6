"""A cluster that is attacked, and what can be known of it from outside."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

from harness import Harness

from understudy.adapters.operator_tokens import FILE_NAME


class Attacked(NamedTuple):
    """A cluster, and what can be known of it from outside."""

    harness: Harness
    control: int  # port
    gateway: int

    @property
    def token(self) -> str:
        return (Path(self.harness.cluster.config.data_dir) / FILE_NAME).read_text().strip()


def ask(
    port: int, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, dict[str, str], Any]:
    """Headers with "_" for "-"; a Host of its own, if one is given."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        if body:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        content = response.read()
        names = {name.lower(): value for name, value in response.getheaders()}
        return response.status, names, json.loads(content) if content else None
    finally:
        connection.close()
