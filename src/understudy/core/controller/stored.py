"""What the controller remembers across its restarts: keys, and the record under each.

    meta                                     Meta
    plan/current                             StoredPlan
    apps/<app>/current                       CurrentVersion
    apps/<app>/versions/<number>             Release
    nodes/<node>                             StoredNode
    quarantine/<app>/<version>/<variant>     Quarantined
    profiles/<digest>/<how it was measured>  Measured (a message, stored as it came)
    deployments/<id>                         StoredDeployment, while it is in progress

Unknown fields are ignored and new fields have defaults.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

import msgspec

from understudy.settings.plan import PlanSettings
from understudy.wire.messages import Measured
from understudy.wire.records import AppVersion, Device, NodeInfo, Plan, VariantKey

R = TypeVar("R", bound=msgspec.Struct)

META = "meta"
PLAN = "plan/current"


class Meta(msgspec.Struct, frozen=True):
    epoch: int  # number of this start of the controller


class PlanFacts(msgspec.Struct, frozen=True):
    """What a plan depends on. While it is the same, there is no reason to plan again."""

    nodes: tuple[tuple[str, str, float], ...] = ()  # (name, site, memory_mb)
    apps: tuple[tuple[str, int], ...] = ()  # (app, version)
    quarantined: tuple[VariantKey, ...] = ()
    settings: PlanSettings = PlanSettings()
    cores: tuple[tuple[str, float, tuple[Device, ...]], ...] = ()  # of nodes that state it
    lacking: tuple[tuple[str, str], ...] = ()  # (node, environment) where that isn't ready


class StoredPlan(msgspec.Struct, frozen=True):
    plan: Plan
    facts: PlanFacts


class CurrentVersion(msgspec.Struct, frozen=True):
    version: int  # 0: the app was removed
    newest: int  # numbers are never used twice, not even after a removal
    removed_at: int = 0  # revision, of a removal
    manifests: dict[str, str] = {}  # as in AppVersion, up to date


class Release(msgspec.Struct, frozen=True):
    app: AppVersion
    content: str = ""  # digest of what was deployed: an identical manifest is no new version


class StoredNode(msgspec.Struct, frozen=True):
    info: NodeInfo
    trusted: bool = True  # False: it was dead, or had returned for too short a time
    drain: bool = False  # an operator asked for it
    flaps: int = 0


class Quarantined(msgspec.Struct, frozen=True):
    app: str
    version: int
    variant: str
    nodes: tuple[str, ...] = ()  # where it crashed again and again
    why: str = ""
    pauses: int = 0  # so far

    @property
    def key(self) -> VariantKey:
        return self.app, self.version, self.variant


class StoredDeployment(msgspec.Struct, frozen=True):
    id: str
    app: str
    content: str


class Memory(msgspec.Struct):
    """Everything that was stored, decoded."""

    meta: Meta = Meta(0)
    plan: StoredPlan | None = None
    currents: dict[str, CurrentVersion] = {}
    releases: dict[tuple[str, int], Release] = {}
    nodes: dict[str, StoredNode] = {}
    quarantined: dict[VariantKey, Quarantined] = {}
    profiles: dict[str, Measured] = {}  # by key
    deployments: dict[str, StoredDeployment] = {}
    unreadable: dict[str, str] = {}  # key -> why; such a record stays in the store as it is


class Save(NamedTuple):
    """Records to write and keys to delete, for one reason. Part of what the machine wants done."""

    puts: Mapping[str, msgspec.Struct]
    deletes: tuple[str, ...]
    reason: str


def current_key(app: str) -> str:
    return f"apps/{app}/current"


def release_key(app: str, version: int) -> str:
    return f"apps/{app}/versions/{version}"


def node_key(node: str) -> str:
    return f"nodes/{node}"


def quarantine_key(app: str, version: int, variant: str) -> str:
    return f"quarantine/{app}/{version}/{variant}"


def profile_key(digest: str, method: str) -> str:
    return f"profiles/{digest}/{method}"


def deployment_key(id: str) -> str:
    return f"deployments/{id}"


def encode(record: msgspec.Struct) -> bytes:
    return msgspec.msgpack.encode(record)


def recall(entries: Iterable[tuple[str, bytes]]) -> Memory:
    """All that is stored, from (key, value); what isn't its record is named in `unreadable`.

    Keys of kinds that this version doesn't know are passed over.
    """
    memory = Memory()
    for key, value in entries:
        try:
            _recall(memory, key, value)
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
            memory.unreadable[key] = str(error)
    for app, version in sorted(memory.releases):
        if current_key(app) in memory.unreadable:
            memory.currents[app] = CurrentVersion(version, version)  # the best guess: peers may know more
    return memory


def _recall(memory: Memory, key: str, value: bytes) -> None:
    match key.split("/"):
        case ["meta"]:
            memory.meta = _decode(value, Meta)
        case ["plan", "current"]:
            memory.plan = _decode(value, StoredPlan)
        case ["apps", app, "current"]:
            memory.currents[app] = _decode(value, CurrentVersion)
        case ["apps", app, "versions", number]:
            release = _decode(value, Release)
            if (release.app.app, release.app.version) != (app, int(number)) or not release.app.variants:
                raise ValueError("it is another app's, or has no variants")
            memory.releases[(app, int(number))] = release
        case ["nodes", name]:
            node = _decode(value, StoredNode)
            if node.info.name != name or not 0 <= node.info.memory_mb < math.inf:
                raise ValueError("it is another node's, or its memory is no number")
            memory.nodes[name] = node
        case ["quarantine", _, _, _]:
            entry = _decode(value, Quarantined)
            memory.quarantined[entry.key] = entry
        case ["profiles", _, _]:
            memory.profiles[key] = _decode(value, Measured)
        case ["deployments", id]:
            memory.deployments[id] = _decode(value, StoredDeployment)
        case _:
            pass


def _decode(value: bytes, type_: type[R]) -> R:
    return msgspec.msgpack.decode(value, type=type_)
