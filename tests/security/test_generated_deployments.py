"""A few generated apps deployed beside a good one; `make fuzz-deployments` is the long run."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

from attacked import Attacked
from harness import infer_body

sys.path.append(str(Path(__file__).parents[1] / "fuzz"))
import deployments

ABSURD_LENGTH = b"9" * 20 + b" path=x\n"  # of an attribute, for which the library has no room
SEED = 20
COUNT = 25
GROWN_MB_MAX = 25.0


async def deployed(attacked: Attacked) -> deployments.Seen:
    harness = attacked.harness
    async with harness.traffic("plain", infer_body(deployments.ROWS), 0.05) as good:
        seen = await deployments.deploy(harness, SEED, range(COUNT))
    assert not good.failed
    return seen


def test_generated_apps_harm_nobody(attacked: Attacked) -> None:
    processes = deployments.roles(attacked.harness)
    before_mb = deployments.memory_mb(attacked.harness)
    seen = asyncio.run(deployed(attacked))
    assert not seen.wrong
    assert seen.outcomes["deployment ready"] > 2
    assert seen.outcomes["upload 201, app 400"] > 2
    assert deployments.roles(attacked.harness) == processes
    after_mb = deployments.memory_mb(attacked.harness)
    assert all(after_mb[role] - mb < GROWN_MB_MAX for role, mb in before_mb.items()), (before_mb, after_mb)


def test_an_archive_that_its_reader_chokes_on_ends_no_agent(attacked: Attacked) -> None:
    processes = deployments.roles(attacked.harness)
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        header = tarfile.TarInfo("a")
        header.type, header.size = tarfile.XHDTYPE, len(ABSURD_LENGTH)
        tar.addfile(header, io.BytesIO(ABSURD_LENGTH))
    archive = content.getvalue()
    digest = hashlib.sha256(archive).hexdigest()
    artifact = {"digest": digest, "size_bytes": len(archive), "file_name": "model", "format": "tar"}
    variant = {"name": "v", "runtime": "python", "artifact": artifact, "accuracy": 0.9}
    body = json.dumps({"name": "choking", "variants": [variant]}).encode()
    seen = deployments.Seen(deployments.Counter(), [])
    deployer = deployments.Deployer(attacked.harness, deployments.Cases(SEED), seen)
    became = asyncio.run(deployer.deploy(deployments.Case(archive, digest, body)))
    assert became == "deployment failed"
    assert deployments.roles(attacked.harness) == processes
