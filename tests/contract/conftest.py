"""What several files of this level begin with: a zygote for all tests of a file, a worker for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from worker_process import WorkerProcess, Zygote, worker_process


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.fixture
def blank(zygote: Zygote) -> Iterator[WorkerProcess]:
    with worker_process(zygote) as worker:
        yield worker
