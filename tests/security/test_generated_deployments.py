"""A few generated apps deployed beside a good one; `make fuzz-deployments` is the long run."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from attacked import Attacked
from harness import infer_body

sys.path.append(str(Path(__file__).parents[1] / "fuzz"))
import deployments

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
