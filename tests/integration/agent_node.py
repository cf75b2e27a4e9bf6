"""One real agent, with the test as its controller and its gateway."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

from understudy.adapters.artifacts import DirectoryStore
from understudy.adapters.links import FrameLink, dial, listen
from understudy.agent.limits import Groups
from understudy.agent.process import cgroup_name
from understudy.config import load_cluster
from understudy.settings.cluster import ClusterConfig
from understudy.wire.errors import UnderstudyError
from understudy.wire.frames import Frame
from understudy.wire.messages import (
    Activate,
    Activated,
    Failure,
    Heartbeat,
    Hello,
    Infer,
    Measure,
    Measured,
    NodeState,
    ReplicaState,
    Report,
    Result,
    Target,
    TargetReplica,
    decode_message,
)
from understudy.wire.records import (
    AppVersion,
    ArtifactRef,
    Batching,
    Contingency,
    Event,
    Profile,
    Role,
    TensorSpec,
    Variant,
)

T = TypeVar("T")
DEADLINE_S = 15.0
ONE_BY_ONE = Batching(rows_max=1)
QUICK = {"probe_interval_ms": 200, "probe_timeout_ms": 150}
X, Y = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1, 4))
PROBE = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0.1, 0.2, 0.3, 0.4]}]}
START = """
import sys
from pathlib import Path
from understudy.agent.process import run_agent
from understudy.config import load_cluster
run_agent(load_cluster(Path(sys.argv[1])), "n1")
"""
# Misbehaves when a file of that name, followed by the variant's, lies in the folder of orders.
PYTHON_MODEL = """
import os, signal, time
from pathlib import Path
import numpy as np

ORDERS = Path({orders!r})

class Model:
    def load(self, path):
        if (ORDERS / "crash-{name}").exists():
            print("about to crash")
            signal.raise_signal(signal.SIGSEGV)
        if (ORDERS / "cramped-{name}").exists():
            raise RuntimeError("no cache") from OSError(28, "No space left on device")

    def predict(self, inputs):
        if (ORDERS / "hoard-{name}").exists():
            self.hoard = [np.ones((1024, 1024)) for _ in range(64)]
        if (ORDERS / "litter-{name}").exists():
            for number in range(100_000):
                os.close(os.open(os.environ["TMPDIR"] + f"/{{number}}", os.O_CREAT | os.O_WRONLY))
        if (ORDERS / "slow-{name}").exists():
            time.sleep(0.1)
        while (ORDERS / "hang-{name}").exists():
            time.sleep(0.01)
        if (ORDERS / "print-{name}").exists():
            for _ in range(40):
                os.write(1, b"\\xff" * 500_000)
            print("\\ncustomer record")
        return {{"y": inputs["x"] * {factor}}}
"""


class AgentNode:
    """The agent process, the controller and the gateway that it talks to, and what they have heard."""

    def __init__(self, folder: Path, run_dir: str, tuning: dict[str, float | str]) -> None:
        self.folder = folder
        self.orders = folder / "orders"
        self.orders.mkdir()
        self.orders.chmod(0o777)  # models are other users
        self._hung_up = asyncio.Event()
        self.log_path = folder / "agent.log"
        cluster = folder / "cluster.toml"
        cluster.write_text(
            f'data_dir = "data"\nrun_dir = "{run_dir}"\nnodes = [{{ name = "n1", memory_mb = 2000 }}]\n'
            + f"agent.sandbox.writable = [{str(self.orders)!r}]\n"
            + "".join(f"agent.{name} = {value!r}\n" for name, value in {**QUICK, **tuning}.items())
        )
        self.cluster_path = cluster
        self.config: ClusterConfig = load_cluster(cluster)
        self.groups = Groups(cgroup_name(self.config.role_dir("agent", "n1"), "n1"), 1024)
        self.store = DirectoryStore(Path(self.config.artifacts_dir))
        self.state: NodeState | None = None  # as the gateway heard it
        self.states: list[NodeState] = []
        self.events: list[Event] = []
        self.beats: list[Heartbeat] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.group = 0
        self.gateway: FrameLink | None = None
        self.apps: list[AppVersion] = []
        self._target: Target | None = None
        self._revision = 0
        self._controller: FrameLink | None = None
        self._server: asyncio.Server | None = None
        self._heard = asyncio.Condition()
        self._pending: set[asyncio.Task[None]] = set()

    # the agent

    def start_agent(self) -> None:
        """Start it, in the group of its former life if anybody lives there: a node is one process group."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, str(self.cluster_path)],
                stdout=log,
                stderr=log,
                process_group=self.group if self.pids() else 0,
            )
        self.group = os.getpgid(self.process.pid)

    def kill_agent(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def kill_node(self) -> None:
        """Everything at once, as when a machine is gone."""
        if self.pids():
            os.killpg(self.group, signal.SIGKILL)

    async def stop_agent(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self.process.wait, DEADLINE_S)

    # the controller

    async def listen(self) -> None:
        address = self.config.controller_addresses()[0]
        self._hung_up.clear()
        self._server = await listen(address, lambda: FrameLink(self._from_agent, self._on_hung_up))

    async def stop_listening(self) -> None:
        """The controller goes away; on return its connection is closed, not only about to be."""
        if self._server is not None:
            self._server.close()
        if self._controller is not None:
            self._controller.abort()
            await self._hung_up.wait()

    def _on_hung_up(self, link: FrameLink, error: Exception | None) -> None:
        self._hung_up.set()

    def _from_agent(self, link: FrameLink, frame: Frame) -> None:
        match decode_message(frame):
            case Hello():
                self._controller = link
                link.send(Hello("controller", "c1"))
                if self._target is not None:
                    link.send(self._target)
            case Report() as report:
                self.events += report.events
        self._notify()

    async def target(
        self,
        *replicas: TargetReplica,
        released: tuple[str, ...] = (),
        quarantined: tuple[tuple[str, int, str], ...] = (),
    ) -> None:
        self._revision += 1
        stage = tuple({v.artifact.digest: v.artifact for a in self.apps for v in a.variants}.values())
        self._target = Target(self._revision, tuple(self.apps), replicas, (), stage, released, quarantined)
        if self._controller is not None and not self._controller.closed:
            self._controller.send(self._target)

    async def measure(self, app: AppVersion, variant: str) -> Measured:
        await self.until(lambda: self._controller is not None and not self._controller.closed)
        assert self._controller is not None
        return await self._controller.call(Measure(app, variant), Measured, DEADLINE_S)

    # the gateway

    async def connect(self) -> None:
        """Dial the agent as a gateway does, as soon as it listens."""
        deadline_s = asyncio.get_running_loop().time() + DEADLINE_S
        while True:
            try:
                link = await dial(self.config.agent_address("n1"), lambda: FrameLink(self._to_gateway))
            except UnderstudyError:
                if asyncio.get_running_loop().time() > deadline_s:
                    raise
                await asyncio.sleep(0.01)
            else:
                self.gateway = link
                link.send(Hello("gateway", "g1"))
                return

    def _to_gateway(self, _link: FrameLink, frame: Frame) -> None:
        match decode_message(frame):
            case NodeState() as state:
                self.state = state
                self.states.append(state)
            case Heartbeat() as beat:
                self.beats.append(beat)
        self._notify()

    async def activate(self, contingency: Contingency) -> Activated:
        assert self.gateway is not None
        return await self.gateway.call(Activate(contingency, 1), Activated, DEADLINE_S)

    async def infer(self, replica: ReplicaState) -> dict[str, Any]:
        """Ask the replica's worker, as a gateway would. Raises what the worker says."""
        answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()

        def lost(_link: FrameLink, _error: Exception | None) -> None:
            if not answer.done():
                answer.set_exception(ConnectionError("the worker is gone"))

        link = await dial(
            replica.address, lambda: FrameLink(lambda _link, frame: answer.set_result(frame), lost)
        )
        link.send(Infer(5_000_000), 7, json.dumps(PROBE).encode())
        try:
            async with asyncio.timeout(DEADLINE_S):
                frame = await answer
        finally:
            link.close()
        message = decode_message(frame)
        if isinstance(message, Failure):
            raise message.error()
        assert isinstance(message, Result)
        return dict(json.loads(frame.payload))

    # what is known

    def replica(self, variant: str = "", state: str = "") -> ReplicaState | None:
        for replica in self.state.replicas if self.state else ():
            if variant in ("", replica.variant) and state in ("", replica.state):
                return replica
        return None

    def told(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.kind == kind]

    async def ready(self, variant: str = "", *, unlike: int = 0) -> ReplicaState:
        """A ready replica of `variant`, whose process isn't `unlike`."""

        def found() -> ReplicaState | None:
            replica = self.replica(variant, "ready")
            return replica if replica is not None and replica.pid != unlike else None

        return await self.until(found)

    async def staged(self, *digests: str) -> None:
        await self.until(lambda: self.state is not None and set(digests) <= set(self.state.staged))

    async def until(self, holds: Callable[[], T | None], timeout_s: float = DEADLINE_S) -> T:
        """Wait until `holds` is true of what was heard; fails with the agent's log."""
        async with self._heard:
            try:
                async with asyncio.timeout(timeout_s):
                    while not (value := holds()):
                        await self._heard.wait()
            except TimeoutError:
                state = self.state.replicas if self.state else None
                raise AssertionError(f"not in time; last state: {state}, events: {self.events}") from None
            return value

    def _notify(self) -> None:
        task = asyncio.get_running_loop().create_task(self._notify_all())
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _notify_all(self) -> None:
        async with self._heard:
            self._heard.notify_all()

    # artifacts

    def put(self, content: bytes, name: str, format_: str = "file") -> ArtifactRef:
        digest = hashlib.sha256(content).hexdigest()
        self.store.put(digest, io.BytesIO(content))
        return ArtifactRef(digest, len(content), name, format_)

    def python_variant(self, name: str, factor: int = 2, **more: Any) -> Variant:
        source = PYTHON_MODEL.format(orders=str(self.orders), factor=factor, name=name).encode()
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            entry = tarfile.TarInfo("model.py")
            entry.size = len(source)
            tar.addfile(entry, io.BytesIO(source))
        return Variant(name, "python", self.put(packed.getvalue(), f"{name}.tar", "tar"), 0.9, **more)

    def app(
        self, *variants: Variant, name: str = "double", version: int = 1, batching: Batching = ONE_BY_ONE
    ) -> AppVersion:
        app = AppVersion(name, version, variants, inputs=(X,), outputs=(Y,), probe=PROBE, batching=batching)
        self.apps.append(app)
        return app

    # the end

    def pids(self) -> list[int]:
        """Processes of the node's group that are alive."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    if int(fields[2]) == self.group and fields[0] not in "ZX":
                        found.append(int(entry.name))
        return found

    async def close(self) -> None:
        self.kill_node()
        if self.process is not None:
            self.process.wait()
        await asyncio.to_thread(self._clear_cgroups)
        for link in (self.gateway, self._controller):
            if link is not None:
                link.abort()
        if self._server is not None:
            self._server.close()

    def _clear_cgroups(self) -> None:
        assert self.groups.sweep(), "groups can't be removed"


@contextlib.asynccontextmanager
async def agent_node(folder: Path, **tuning: float | str) -> AsyncIterator[AgentNode]:
    """A started agent with controller and gateway connected. Prints the agent's log if the test fails."""
    run_dir = tempfile.mkdtemp(prefix="us-", dir="/tmp")
    node = AgentNode(folder, run_dir, tuning)
    try:
        await node.listen()
        node.start_agent()
        await node.connect()
        yield node
    except BaseException:
        sys.stderr.write(node.log_path.read_text(errors="replace")[-20_000:])
        raise
    finally:
        await node.close()
        shutil.rmtree(run_dir, ignore_errors=True)


def wanted(variant: str, app: str = "double", version: int = 1, role: Role = Role.PRIMARY) -> TargetReplica:
    return TargetReplica(app, version, variant, role)


def profile(memory_mb: float = 20.0, load_ms: float = 10.0) -> Profile:
    return Profile(40.0, memory_mb, load_ms, 1.0, "test")
