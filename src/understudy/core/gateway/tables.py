"""What a gateway makes of a new route table: absence is never removal. Pure."""

from __future__ import annotations

import msgspec

from understudy.wire.records import RouteTable


def completed(table: RouteTable, held: RouteTable) -> RouteTable:
    """`table` with the apps of `held` that it lacks and doesn't name as removed: its sender may know less.

    A table of a controller that names no removals at all (None) is taken as it is.
    """
    if table.removed is None:
        return table
    present = {app.app for app in table.apps}
    removed = {removal.app: removal.newest for removal in table.removed}
    kept = {a.app for a in held.apps if a.app not in present and a.version > removed.get(a.app, 0)}
    if not kept:
        return table
    nodes = {node.name for node in table.nodes}
    needed = {p.node for p in held.placements if p.app in kept}
    needed |= {c.node for c in held.contingencies if c.app in kept}
    return msgspec.structs.replace(
        table,
        nodes=(*table.nodes, *(n for n in held.nodes if n.name in needed and n.name not in nodes)),
        apps=(*table.apps, *(a for a in held.apps if a.app in kept)),
        contingencies=(*table.contingencies, *(c for c in held.contingencies if c.app in kept)),
        placements=(*table.placements, *(p for p in held.placements if p.app in kept)),
        quarantined=(*table.quarantined, *(key for key in held.quarantined if key[0] in kept)),
        previous=(*table.previous, *(a for a in held.previous if a.app in kept)),
    )
