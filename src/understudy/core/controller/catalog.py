"""Apps as this controller knows them: the current version of each, and the releases that are kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from understudy.core.controller import learning, stored
from understudy.core.controller.quarantine import Quarantine
from understudy.core.controller.stand_ins import mismatch
from understudy.core.controller.stored import CurrentVersion, Release
from understudy.settings.controller import ControllerTuning
from understudy.wire.records import AppVersion, Removal

VersionKey = tuple[str, int]  # (app, version)


class Catalog:
    """A removed app stays in `currents`, with version 0: absence is never removal."""

    def __init__(self, memory: stored.Memory, quarantine: Quarantine, tuning: ControllerTuning) -> None:
        self.currents = memory.currents
        self.releases = memory.releases
        self.recovered: set[str] = set()  # apps that the store knew less of than a peer, in this life
        self._quarantine = quarantine
        self._tuning = tuning

    @property
    def apps(self) -> dict[str, AppVersion]:
        """The current version of each app."""
        return {
            app: self.releases[(app, current.version)].app
            for app, current in sorted(self.currents.items())
            if current.version and (app, current.version) in self.releases  # one may be unreadable
        }

    @property
    def live(self) -> set[VersionKey]:
        """Current versions, also those that can't be read."""
        return {(app, current.version) for app, current in self.currents.items() if current.version}

    @property
    def removals(self) -> tuple[Removal, ...]:
        return learning.removals(self.currents, self._tuning.removals_max)

    def next_version(self, app: str) -> int:
        current = self.currents.get(app)
        return current.newest + 1 if current else 1

    def _outdated(self, app: str, newest: int, planned: Collection[VersionKey]) -> list[VersionKey]:
        """Versions to forget when there is a `newest` one. What the plan is about may still be running."""
        oldest = newest - self._tuning.versions_max
        return [key for key in self.releases if key[0] == app and key[1] <= oldest and key not in planned]

    def deploy(self, release: Release, planned: Collection[VersionKey]) -> None:
        app = release.app
        self.releases[(app.app, app.version)] = release
        self.currents[app.app] = CurrentVersion(app.version, app.version, manifests=app.manifests)
        for key in self._outdated(app.app, app.version, planned):
            del self.releases[key]
        self._quarantine.forget(app.app)

    def _removal(self, app: str, revision: int) -> CurrentVersion:
        return msgspec.structs.replace(self.currents[app], version=0, removed_at=revision)

    def remove(self, app: str, revision: int) -> None:
        self.currents[app] = self._removal(app, revision)
        self._forget(app)
        self._quarantine.forget(app)

    def release_records(
        self, release: Release, planned: Collection[VersionKey]
    ) -> tuple[dict[str, msgspec.Struct], tuple[str, ...]]:
        """What to put and to delete so that a restarted controller knows that it was deployed."""
        app, version = release.app.app, release.app.version
        puts: dict[str, msgspec.Struct] = {
            stored.release_key(app, version): release,
            stored.current_key(app): CurrentVersion(version, version, manifests=release.app.manifests),
        }
        gone = [stored.release_key(*key) for key in self._outdated(app, version, planned)]
        return puts, (*gone, *self._quarantine_keys(app))

    def removal_records(self, app: str, revision: int) -> tuple[dict[str, msgspec.Struct], tuple[str, ...]]:
        """What to put and to delete so that it knows that it was removed."""
        gone = [stored.release_key(*key) for key in self.releases if key[0] == app]
        return {stored.current_key(app): self._removal(app, revision)}, (*gone, *self._quarantine_keys(app))

    def _quarantine_keys(self, app: str) -> list[str]:
        return [stored.quarantine_key(*key) for key in self._quarantine.keys if key[0] == app]

    def learn(
        self, held: learning.Held, source: str, revision: int
    ) -> tuple[learning.Learned, list[VersionKey]]:
        """Take over what a peer knows better; also the releases that are gone by it."""
        learned = learning.learn(self.currents, self.releases, held, source)
        self.currents |= learned.currents
        self.releases |= learned.releases
        self.recovered |= learned.currents.keys()
        removed = [app for app, current in learned.currents.items() if not current.version]
        gone = [key for app in removed for key in self._forget(app)]
        for app in learning.known_as_removed(held, self.currents):  # tell it, however long ago that was
            newest = msgspec.structs.replace(self.currents[app], removed_at=revision)
            self.currents[app] = learned.currents[app] = newest
        return learned, gone

    def in_versions(self, planned: Collection[VersionKey]) -> dict[str, AppVersion]:
        """Each app in the version that the plan is about, so that all of what is published fits together."""
        apps = self.apps
        for app, version in planned:
            if app in apps and (app, version) in self.releases:
                apps[app] = self.releases[(app, version)].app
        return apps

    def previous(self, published: Mapping[str, AppVersion]) -> dict[str, AppVersion]:
        """What may answer where the published version fails: the one before, if clients can't tell."""
        found = {}
        for name, app in published.items():
            older = [version for other, version in self.releases if other == name and version < app.version]
            if older and "previous-version" in app.fallback:
                previous = self.releases[(name, max(older))].app
                if not mismatch(app, previous):
                    found[name] = previous
        return found

    def _forget(self, app: str) -> list[VersionKey]:
        gone = [key for key in self.releases if key[0] == app]
        for key in gone:
            del self.releases[key]
        return gone
