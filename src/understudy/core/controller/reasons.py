"""Sentences for people: why the controller plans, publishes and moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, assert_never

from understudy.core.controller import events as ev
from understudy.core.controller.stored import PlanFacts
from understudy.wire.records import Placement

NAMED_MAX = 50  # replicas named in one event


def what_changed(before: PlanFacts, now: PlanFacts) -> str:
    """Why a plan made from `before` is not good enough any more."""
    changes: list[str] = []
    were, are = {n[0]: n[1:] for n in before.nodes}, {n[0]: n[1:] for n in now.nodes}
    changes += [f"node {name} takes part" for name in are if name not in were]
    changes += [f"node {name} is out" for name in were if name not in are]
    changes += [f"node {name} changed" for name in are if name in were and are[name] != were[name]]
    if before.cores != now.cores and not changes:
        changes.append("devices of nodes changed")
    had, has = dict(before.apps), dict(now.apps)
    changes += [f"{app} version {has[app]} deployed" for app in has if has[app] != had.get(app)]
    changes += [f"{app} removed" for app in had if app not in has]
    quarantined = set(now.quarantined) - set(before.quarantined)
    changes += [f"{variant} of {app} is quarantined" for app, _, variant in sorted(quarantined)]
    lifted = {key for key in set(before.quarantined) - set(now.quarantined) if key[:2] in now.apps}
    changes += [f"{variant} of {app} may run again" for app, _, variant in sorted(lifted)]
    both = were.keys() & are.keys()
    ready = {node for node, key in set(before.lacking) - set(now.lacking) if node in both}
    unready = {node for node, key in set(now.lacking) - set(before.lacking) if node in both}
    changes += [f"packages are ready on node {node}" for node in sorted(ready - unready)]
    changes += [f"packages are missing on node {node}" for node in sorted(unready)]
    if before.settings != now.settings:
        changes.append("plan settings changed")
    return ", ".join(changes) or "asked for"


def moves(before: Iterable[Placement], now: Iterable[Placement]) -> dict[str, Any]:
    """What a plan starts and stops: counts, and names of the first NAMED_MAX of each."""
    had, has = Counter(map(_where, before)), Counter(map(_where, now))
    starts, stops = has - had, had - has
    return {
        "starts": starts.total(),
        "stops": stops.total(),
        "start": sorted(starts.elements())[:NAMED_MAX],
        "stop": sorted(stops.elements())[:NAMED_MAX],
    }


def _where(placement: Placement) -> str:
    return f"{placement.app}/{placement.variant} on {placement.node}"


def why(event: ev.Event) -> str:
    """What made the machine look again."""
    match event:
        case ev.AgentHello(hello):
            return f"node {hello.name} connected"
        case ev.AgentLost(node):
            return f"node {node} disconnected"
        case ev.StateReported(state):
            return f"node {state.node} reported"
        case ev.HeartbeatHeard(beat):
            return f"node {beat.node} was heard again"
        case ev.GatewayHello(name):
            return f"gateway {name} connected"
        case ev.HeldTold(_, name):
            return f"{name} told what it holds"
        case ev.ManifestNoted(app):
            return f"{app} was asked for again"
        case ev.Deployed(release):
            return f"{release.app.app} version {release.app.version} deployed"
        case ev.Removed(app):
            return f"{app} removed"
        case ev.DrainAsked(node):
            return f"drain of {node} asked for"
        case ev.UndrainAsked(node):
            return f"end of the drain of {node} asked for"
        case ev.QuarantineCleared(app, variant):
            return f"quarantine of {app}/{variant} cleared"
        case ev.Planned(plan):
            return f"plan {plan.revision}: {plan.reason}"
        case ev.PlanningFailed():
            return "planning failed"
        case ev.Tick():
            return "time has passed"
        case ev.Started():
            return "controller started"
        case _:
            assert_never(event)
