"""What runs a model: one module for each runtime, found by the name that it has in settings/runtimes.py."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from understudy.settings.runtimes import RUNTIMES, check_runtime
from understudy.worker.runtimes.contract import Runtime, load_failed


def make_runtime(name: str, threads: int) -> Runtime:
    """A runtime with nothing loaded. `threads` is for one inference. Raises LOAD_FAILED."""
    try:
        check_runtime(name)
    except ValueError as error:
        raise load_failed(str(error)) from None
    module, _, class_ = RUNTIMES[name].implementation.partition(":")
    make: Callable[[int], Runtime] = getattr(import_module(module), class_)
    return make(threads)
