"""The environments of a node: which are ready, which are wanted, which need a zygote now."""

from __future__ import annotations

from collections.abc import Iterable

from understudy.core.agent.pools import OWN, pool_of
from understudy.core.agent.replicas import Replica
from understudy.wire.messages import Target
from understudy.wire.records import AppVersion, Environment, Variant

RETRY_S = 5.0  # a replica whose environment isn't ready looks again after this, if nothing happens before


class Environments:
    """What the node can run variants in. `found`: by key, empty where it is ready, else why it isn't."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def changed(self, key: str, problem: str | None) -> None:
        if problem is None:
            self.found.pop(key, None)
        else:
            self.found[key] = problem

    @property
    def ready(self) -> frozenset[str]:
        return frozenset(key for key, problem in self.found.items() if not problem)

    def problem(self, variant: Variant) -> str:
        """Why `variant` can't be run here; empty if it can, as far as its environment goes."""
        key = variant.environment_key
        if not key:
            return ""
        problem = self.found.get(key, "it isn't here yet")
        return f"the environment of {variant.name}: {problem}" if problem else ""


def wanted(apps: Iterable[AppVersion]) -> tuple[Environment, ...]:
    """All that `apps` may need: any node can become the last resort of any of them."""
    found = {v.environment_key: v.environment for app in apps for v in app.variants}
    return tuple(environment for environment in found.values() if environment is not None)


def urgent(target: Target | None) -> frozenset[str]:
    """Pools that contingencies of this node would need at once, but for the one that is always there."""
    if target is None:
        return frozenset()
    named = {(c.app, c.version, name) for c in target.contingencies for name in (c.first, c.variant)}
    return _keys(v for app in target.apps for v in app.variants if (app.app, app.version, v.name) in named)


def in_use(replicas: Iterable[Replica]) -> frozenset[str]:
    """The same of what there is."""
    return _keys(replica.wanted.variant for replica in replicas if replica.wanted is not None)


def _keys(variants: Iterable[Variant]) -> frozenset[str]:
    return frozenset(map(pool_of, variants)) - {OWN}
