"""What tasks raise reaches the caller without the groups around it."""

from __future__ import annotations

import asyncio

import pytest

from understudy.adapters.task_groups import ungrouped
from understudy.wire.errors import ConfigError


async def fail(error: Exception, depth: int) -> None:
    async with asyncio.TaskGroup() as tasks:
        if depth:
            tasks.create_task(fail(error, depth - 1))
        else:
            raise error


@pytest.mark.parametrize("depth", [0, 2])
def test_the_failure_itself_is_raised(depth: int) -> None:
    with pytest.raises(ConfigError, match="wrong"), ungrouped(ConfigError):
        asyncio.run(fail(ConfigError("wrong"), depth))


def test_other_failures_keep_their_group() -> None:
    with pytest.raises(ExceptionGroup), ungrouped(ConfigError):
        asyncio.run(fail(ValueError("a bug"), 1))


def test_a_failure_without_a_group_passes() -> None:
    with pytest.raises(ConfigError), ungrouped(ConfigError):
        raise ConfigError("wrong")
