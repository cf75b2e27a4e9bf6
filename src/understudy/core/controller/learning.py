"""What gateways and agents hold that this controller may not know: who has told it, and what is taken over.

A store can be lost, damaged, or restored from a backup that is older than what is being served. So each peer
sends back what it got last (a route table, a target) when it connects, and a controller publishes nothing
before it has heard those that are configured, or `start_grace_ms` are over. To a peer that holds something it
says nothing before it knows what that is. Pure.

What wins: the highest number. A removal wins over versions up to the number it was made at. One number that
stands for two things (deployed while nobody was there who knew better) is left to the peers; ours gets the
next one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from understudy.core.controller import stored
from understudy.core.controller.stored import CurrentVersion, PlanFacts, Release, StoredPlan
from understudy.settings import Name
from understudy.settings.cluster import ClusterConfig
from understudy.wire.messages import Target
from understudy.wire.records import AppVersion, Plan, Removal, RouteTable

Peer = tuple[str, str]  # (role, name)
Held = RouteTable | Target

NUMBER_MAX = 2**53  # of a revision or version; a peer that says more isn't believed


class Hearing:
    """Who is still to be heard. Times are monotonic seconds."""

    def __init__(self, config: ClusterConfig, now: float) -> None:
        gateways = [name for gateway in config.gateways for name in gateway.process_names]
        self._expected = {("agent", node.name) for node in config.nodes}
        self._expected |= {("gateway", name) for name in gateways}
        self._grace_s = config.controller.start_grace_ms / 1000
        self._until_s = now + self._grace_s
        self._silent: dict[Peer, float] = {}  # holds something and hasn't told yet -> patience ends
        self.revisions: dict[Peer, int] = {}  # of what each holds, as it said when it connected

    @property
    def over(self) -> bool:
        """Whether all who could know more were heard, or had their time."""
        return not self._expected

    def hello(self, peer: Peer, revision: int, now: float) -> None:
        """`revision` of what it holds; 0: nothing."""
        self.revisions[peer] = revision
        if revision > 0:
            self._silent[peer] = now + self._grace_s
        else:
            self.told(peer)

    def told(self, peer: Peer) -> None:
        self._silent.pop(peer, None)
        self._expected.discard(peer)

    def waits_for(self, peer: Peer) -> bool:
        return peer in self._silent

    def tick(self, now: float) -> list[Peer]:
        """Those whose time is over, of an older version perhaps."""
        if now >= self._until_s:
            self._expected.clear()
        late = [peer for peer, until_s in self._silent.items() if now >= until_s]
        for peer in late:
            self.told(peer)
        return late


@dataclass(slots=True)
class Learned:
    """What changes, and what to tell about it: (kind, message, app)."""

    currents: dict[str, CurrentVersion] = field(default_factory=dict)
    releases: dict[tuple[str, int], Release] = field(default_factory=dict)
    notes: list[tuple[str, str, str]] = field(default_factory=list)

    def records(self) -> dict[str, msgspec.Struct]:
        records: dict[str, msgspec.Struct] = {stored.current_key(a): c for a, c in self.currents.items()}
        return records | {stored.release_key(*key): release for key, release in self.releases.items()}


def learn(
    currents: Mapping[str, CurrentVersion],
    releases: Mapping[tuple[str, int], Release],
    held: Held,
    source: str,
) -> Learned:
    """What `source` knows better than we."""
    learned = Learned()
    for app, versions in sorted(_versions(held, currents).items()):
        _learn_app(learned, app, versions, currents.get(app), releases, source)
    for removal in held.removed or ():
        if _is_name(removal.app) and 0 < removal.newest <= NUMBER_MAX:
            _learn_removal(learned, removal, currents, source)
    return learned


def taken_over(held: Held) -> StoredPlan | None:
    """The plan that a gateway goes by, to move as little as possible where we know none."""
    if not isinstance(held, RouteTable) or not held.placements:
        return None
    apps = {app.app: app.version for app in held.apps}
    placed = tuple(p for p in held.placements if apps.get(p.app) == p.version)
    plan = Plan(held.plan_revision, placed, held.contingencies, reason="taken over from a gateway")
    return StoredPlan(plan, PlanFacts(apps=tuple(sorted(apps.items()))))


def known_as_removed(held: Held, currents: Mapping[str, CurrentVersion]) -> list[str]:
    """Apps that a peer holds and that were removed, as we know and it doesn't."""
    found = []
    for app, versions in _versions(held, currents).items():
        current = currents.get(app)
        if current is not None and not current.version and max(versions) <= current.newest:
            found.append(app)
    return sorted(found)


def removals(currents: Mapping[str, CurrentVersion], removals_max: int) -> tuple[Removal, ...]:
    """The newest ones, by name."""
    gone = [(current.removed_at, app, current.newest) for app, current in currents.items()]
    gone = [entry for entry in gone if not currents[entry[1]].version and entry[2]]
    newest = sorted(gone)[-removals_max:]
    return tuple(Removal(app, number) for _, app, number in sorted(newest, key=lambda entry: entry[1]))


def _learn_app(
    learned: Learned,
    app: str,
    versions: dict[int, AppVersion],
    current: CurrentVersion | None,
    releases: Mapping[tuple[str, int], Release],
    source: str,
) -> None:
    newest = current.newest if current else 0
    top = max(versions)
    taken = {(app, version): Release(spec, spec.content) for version, spec in versions.items()}
    if top > newest:
        learned.releases |= {key: release for key, release in taken.items() if key not in releases}
        learned.currents[app] = CurrentVersion(top, top, manifests=versions[top].manifests)
        knew = f"the newest known here was {newest}" if newest else "it was not known here"
        learned.notes.append(("app.taken_over", f"version {top} is taken over from {source}; {knew}", app))
    if current is None or not current.version:
        return
    key = (app, current.version)
    if key not in taken:
        return
    if key not in releases:
        learned.releases[key] = taken[key]
        learned.notes.append(("app.taken_over", f"the record of version {key[1]} is back, by {source}", app))
    elif not _same(releases[key].app, taken[key].app):
        ours, number = releases[key], max(newest, top) + 1
        learned.releases[key] = taken[key]
        spec = msgspec.structs.replace(ours.app, version=number)
        learned.releases[(app, number)] = Release(spec, ours.content)
        learned.currents[app] = CurrentVersion(number, number, manifests=current.manifests)
        message = f"{source} holds another version {key[1]}: what was deployed here is {number} now"
        learned.notes.append(("app.renumbered", message, app))


def _learn_removal(
    learned: Learned, removal: Removal, currents: Mapping[str, CurrentVersion], source: str
) -> None:
    current = learned.currents.get(removal.app) or currents.get(removal.app) or CurrentVersion(0, 0)
    if removal.newest < current.newest or (removal.newest == current.newest and not current.version):
        return
    learned.currents[removal.app] = CurrentVersion(0, removal.newest, manifests=current.manifests)
    learned.releases = {key: r for key, r in learned.releases.items() if key[0] != removal.app}
    if current.version:
        learned.notes.append(("app.removed", f"it was removed, as {source} knows", removal.app))


def _versions(held: Held, known: Collection[str]) -> dict[str, dict[int, AppVersion]]:
    """What could be believed, of all that a peer says."""
    found: dict[str, dict[int, AppVersion]] = defaultdict(dict)
    previous: Iterable[AppVersion] = held.previous if isinstance(held, RouteTable) else ()
    for spec in (*previous, *held.apps):
        is_name = spec.app in known or _is_name(spec.app)
        if is_name and spec.variants and 0 < spec.version <= NUMBER_MAX:
            found[spec.app][spec.version] = spec
    return dict(found)


def _is_name(text: str) -> bool:
    try:
        msgspec.convert(text, Name)
    except msgspec.ValidationError:
        return False
    return True


def _same(ours: AppVersion, theirs: AppVersion) -> bool:
    """Whether two versions of one number run the same."""

    def parts(app: AppVersion) -> set[tuple[str, str]]:
        return {(variant.name, variant.artifact.digest) for variant in app.variants}

    return parts(ours) == parts(theirs)
