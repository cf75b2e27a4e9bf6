"""Packages of a new version's variants onto the nodes, before anything of it is measured or placed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.records import AppVersion, Environment

OnNode = Callable[[str, Environment], Awaitable[object]]


class Preparer:
    """`nodes` tells which nodes are ready now; `on_node` has one prepare, or raises why not."""

    def __init__(self, nodes: Callable[[], list[str]], on_node: OnNode) -> None:
        self._nodes = nodes
        self._on_node = on_node

    async def prepare(self, app: AppVersion) -> list[str]:
        """Where what can't be had, as sentences. Raises LOAD_FAILED for a variant that can't be run anywhere.

        A node that comes later builds what it lacks for itself, and is planned with from then on.
        """
        warnings = []
        for key, environment in {v.environment_key: v.environment for v in app.variants}.items():
            nodes = self._nodes()
            if environment is None or not nodes:
                continue
            tried = (self._on_node(node, environment) for node in nodes)
            results = await asyncio.gather(*tried, return_exceptions=True)
            failed = {node: r for node, r in zip(nodes, results, strict=True) if isinstance(r, BaseException)}
            for error in failed.values():
                if not isinstance(error, UnderstudyError):
                    raise error
            names = " and ".join(repr(v.name) for v in app.variants if v.environment_key == key)
            told = [f"{node}: {_text(error)}" for node, error in failed.items()]
            if len(failed) == len(nodes):
                raise UnderstudyError(
                    Code.LOAD_FAILED, f"variant {names}: its packages can't be had on {_joined(told)}"
                )
            warnings += [f"{names} can't run on {each}" for each in told]
        return warnings


def _joined(told: list[str]) -> str:
    """The same reason once."""
    by_reason: dict[str, list[str]] = {}
    for each in told:
        node, _, reason = each.partition(": ")
        by_reason.setdefault(reason, []).append(node)
    return "; ".join(f"{', '.join(nodes)}: {reason}" for reason, nodes in by_reason.items())


def _text(error: BaseException) -> str:
    return error.message if isinstance(error, UnderstudyError) else str(error)
