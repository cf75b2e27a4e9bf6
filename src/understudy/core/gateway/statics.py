"""Static answers of the apps in a route table. One that can't be sent is as good as none."""

from __future__ import annotations

import msgspec

from understudy.wire.errors import InvalidArgument
from understudy.wire.records import AppVersion, RouteTable
from understudy.wire.statics import Static, read_static


class Statics:
    """What apps declare, read once for each version."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[AppVersion, Static | None]] = {}

    def get(self, spec: AppVersion) -> Static | None:
        """None: it declares none, or one that can't be sent."""
        known = self._read.get(spec.app)
        if known is not None and known[0] is spec:
            return known[1]
        try:
            static = None if spec.static is None else read_static(spec.static)
        except InvalidArgument:
            static = None
        self._read[spec.app] = (spec, static)
        return static


def usable(table: RouteTable, former: RouteTable) -> tuple[tuple[AppVersion, ...], dict[str, str]]:
    """The apps of `table`, without static answers that can't be sent; app -> why, if it isn't known yet."""
    known = {spec.app: spec for spec in former.apps}
    apps: list[AppVersion] = []
    mistakes: dict[str, str] = {}
    for spec in table.apps:
        if spec.static is not None:
            try:
                read_static(spec.static)
            except InvalidArgument as error:
                before = known.get(spec.app)
                if before is None or before.version != spec.version:
                    mistakes[spec.app] = error.message
                spec = msgspec.structs.replace(spec, static=None)
        apps.append(spec)
    return tuple(apps), mistakes
