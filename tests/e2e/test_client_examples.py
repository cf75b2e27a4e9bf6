"""examples/clients, each run as it stands, but for the ports, against the quickstart."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas
import pytest
from running_cluster import running

from understudy.adapters.ports import free_ports
from understudy.client import Client

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TIMEOUT_S = 60


class Ports(NamedTuple):
    http: int
    control: int
    grpc: int


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    """Those of a running quickstart."""
    ports = Ports(*free_ports(len(Ports._fields)))
    folder = tmp_path_factory.mktemp("examples") / "quickstart"
    shutil.copytree(EXAMPLES / "quickstart", folder)
    file = folder / "CLUSTER.toml"
    text = file.read_text().replace(":8090", f":{ports.control}")
    listeners = f'"127.0.0.1:{ports.http}"\ngrpc = "127.0.0.1:{ports.grpc}"'
    file.write_text(text.replace('"127.0.0.1:8080"', listeners))
    with running(file):
        yield ports


def run(example: str, ports: Ports, folder: Path) -> str:
    """Its output."""
    text = (EXAMPLES / "clients" / example).read_text()
    file = folder / example
    file.write_text(
        text.replace("localhost:8080", f"127.0.0.1:{ports.http}").replace(":8081", f":{ports.grpc}")
    )
    argv = ["sh" if file.suffix == ".sh" else sys.executable, str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_curl(ports: Ports, tmp_path: Path):
    head, _, body = run("curl.sh", ports, tmp_path).partition("\n\n")
    assert "Understudy-Variant: exact" in head
    assert json.loads(body)["outputs"][0]["data"] == [True, False]


def test_our_client(ports: Ports, tmp_path: Path):
    out = run("understudy_client.py", ports, tmp_path)
    assert out == "[True, False] by exact degraded: None\n"


def test_our_client_for_coroutines(ports: Ports, tmp_path: Path):
    out = run("understudy_async_client.py", ports, tmp_path)
    assert json.loads(out.lower()) == [number == 97 for number in range(90, 100)]


def test_tritons_client_over_http(ports: Ports, tmp_path: Path):
    assert run("triton_http.py", ports, tmp_path) == "[True, False]\n"


def test_tritons_client_over_grpc(ports: Ports, tmp_path: Path):
    assert run("triton_grpc.py", ports, tmp_path) == "[True, False]\n"


def test_kserves_client(ports: Ports, tmp_path: Path):
    assert run("kserve_rest.py", ports, tmp_path) == "[True, False]\n"


def test_a_data_frame_goes_in_as_it_is(ports: Ports):
    frame = pandas.DataFrame({"number": [97, 91]})
    with Client(f"http://127.0.0.1:{ports.http}") as client:
        for given in (frame, {"number": frame["number"]}, frame[["number"]].astype(float)):
            assert client.infer("primes", given).outputs["prime"].ravel().tolist() == [True, False]
