"""Apps that answer for one another: which may, told by their signatures, and that none do in a circle."""

from __future__ import annotations

from collections.abc import Mapping

from understudy.core.controller.signature import listed
from understudy.wire.errors import InvalidArgument
from understudy.wire.records import AppVersion, TensorSpec


def check_known(app: AppVersion, links: Mapping[str, tuple[str, ...]]) -> None:
    """`links`: every app that is deployed or being deployed -> the apps that it names.

    Raises `InvalidArgument` if `app` names one that isn't there, or itself by whatever detour.
    """
    for name in app.stand_ins:
        if name != app.app and name not in links:
            raise InvalidArgument(f"fallback: app {name!r} isn't deployed; deploy it first")
        path = _path(name, app.app, links)
        if path:
            raise InvalidArgument(f"fallback: a circle: {' -> '.join((app.app, *path))}")


def _path(start: str, goal: str, links: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """From `start` to `goal` along `links`; empty if there is no way."""
    paths: list[tuple[str, ...]] = [(start,)]
    seen = {start}
    while paths:
        path = paths.pop()
        if path[-1] == goal:
            return path
        for name in links.get(path[-1], ()):
            if name not in seen:
                seen.add(name)
                paths.append((*path, name))
    return ()


def check_signatures(app: AppVersion, apps: Mapping[str, AppVersion]) -> None:
    """Raises `InvalidArgument` if `app` doesn't suit its stand-ins, or those that it stands in for."""
    for name in app.stand_ins:
        if name in apps and (why := mismatch(app, apps[name])):
            raise InvalidArgument(f"fallback: app {name!r} can't stand in for {app.app!r}: {why}")
    for other in apps.values():
        if app.app in other.stand_ins and (why := mismatch(other, app)):
            raise InvalidArgument(f"app {other.app!r} names {app.app!r} in its fallback, but now {why}")


def mismatch(app: AppVersion, other: AppVersion) -> str:
    """Why `other` can't answer what clients send to `app`; empty if it can."""
    for side, ours, theirs in (("inputs", app.inputs, other.inputs), ("outputs", app.outputs, other.outputs)):
        by_name = {spec.name: spec for spec in theirs}
        if set(by_name) != {spec.name for spec in ours}:
            return f"its {side} are {listed(theirs)}, not {listed(ours)}"
        for spec in ours:
            if not _suits(side, spec, by_name[spec.name]):
                return f"its {side[:-1]} is {listed((by_name[spec.name],))}, not {listed((spec,))}"
    return ""


def _suits(side: str, ours: TensorSpec, theirs: TensorSpec) -> bool:
    """An input must take all that ours takes; an output only must not contradict ours."""
    if ours.datatype != theirs.datatype or len(ours.shape) != len(theirs.shape):
        return False
    if ours.optional and not theirs.optional:
        return False
    open_too = side == "outputs"
    lengths = zip(ours.shape, theirs.shape, strict=True)
    return all(b in (-1, a) or (open_too and a == -1) for a, b in lengths)
