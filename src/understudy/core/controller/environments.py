"""Where the environments of the current variants aren't ready, so that nothing of them is planned there."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from understudy.core.controller.nodes import Node
from understudy.core.controller.stored import PlanFacts
from understudy.core.planning.objective import Lack
from understudy.wire.records import AppVersion


def lacking(nodes: Iterable[Node], apps: Collection[AppVersion], planned: PlanFacts) -> tuple[Lack, ...]:
    """(node, environment), sorted. A node that isn't heard now is as it was when the last plan was made."""
    versions = set(planned.apps)
    known = _keys(app for app in apps if (app.app, app.version) in versions)
    were = {name for name, *_ in planned.nodes}
    found = []
    for node in nodes:
        for key in _keys(apps):
            if node.observed is not None:
                lacks = node.observed.environments.get(key) != ""
            elif node.info.name in were and key in known:
                lacks = (node.info.name, key) in planned.lacking
            else:
                lacks = True
            if lacks:
                found.append((node.info.name, key))
    return tuple(sorted(found))


def is_ready(key: str, node: Node) -> bool:
    """Whether this environment is ready there, as far as is known."""
    return not key or (node.observed is not None and node.observed.environments.get(key) == "")


def troubles(nodes: Iterable[Node], apps: Iterable[AppVersion]) -> list[str]:
    """What keeps variants of `apps` from running on nodes that are there, a sentence each."""
    users: dict[str, list[str]] = {}
    for app in apps:
        for variant in app.variants:
            users.setdefault(variant.environment_key, []).append(f"{app.app}/{variant.name}")
    return [
        f"{node.info.name}: the packages of {', '.join(users[key])} aren't ready: {problem}"
        for node in nodes
        if node.connected and node.observed is not None
        for key, problem in sorted(node.observed.environments.items())
        if problem and key in users
    ]


def _keys(apps: Iterable[AppVersion]) -> list[str]:
    return sorted({v.environment_key for app in apps for v in app.variants} - {""})
