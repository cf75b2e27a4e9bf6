"""What each worker of a node has of the disk, and the walls that it is put behind."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec

from understudy.adapters.own_files import let_others_read, remove_tree
from understudy.adapters.sandbox import trial
from understudy.adapters.sandbox.trial import BestTier
from understudy.adapters.sandbox.walls import Tier, Walls
from understudy.core.agent.pools import OWN, environment_of
from understudy.settings.cluster import ClusterConfig
from understudy.wire.errors import ConfigError

BEST, NONE = "best", "none"


class Rooms:
    """`folder`: what a replica's model is read from. Behind Landlock it has a directory to write to as well.

    Workers in an environment of their model's own are forked by a zygote that runs its packages: they share
    that one's walls, which are of Landlock, and within these each has its own.
    """

    def __init__(self, state_dir: Path, walls: Walls, environment_tier: Tier = Tier.NONE) -> None:
        """`walls`: what those of all workers have in common. `environment_tier`: for packages of models."""
        self.tier = walls.tier
        # Root gives each worker a user number that nobody has.
        self.for_other_users = walls.tier is Tier.NAMESPACES and os.geteuid() == 0
        self.environment_tier = environment_tier
        self._folders = state_dir / "replicas"
        self._scratch = state_dir / "scratch"
        self._root = state_dir / "root"
        self._walls = msgspec.structs.replace(walls, root=str(self._root.resolve()))
        self._places: dict[str, str] = {}  # replica -> its pool's directory in `_folders` and `_scratch`

    def walls(self, worker: str, pool: str = OWN) -> Walls:
        """For a worker that is to be forked; its directories are made. Raises OSError."""
        environment, network = environment_of(pool)
        tier = self.tier if environment == OWN else self.environment_tier
        place = self._places[worker] = place_of(pool)
        self._root.mkdir(parents=True, exist_ok=True)
        return self._made(f"{place}/{worker}", tier, network=network)

    def zygote_walls(self, pool: str, readable: Collection[str]) -> Walls:
        """For the zygote of an environment, or what tries or makes one: it may read its packages too."""
        _, network = environment_of(pool)
        walls = self._made(place_of(pool), self.environment_tier, network=network)
        return msgspec.structs.replace(walls, readable=(*walls.readable, *readable))

    def _made(self, place: str, tier: Tier, *, network: bool) -> Walls:
        folder, scratch = self._folders / place, self._scratch / place
        for each in (folder, scratch):
            each.mkdir(parents=True, exist_ok=True)
        if self.for_other_users:
            folder.chmod(0o755)
        return msgspec.structs.replace(
            self._walls,
            tier=tier,
            folder=str(folder.resolve()),
            scratch=str(scratch.resolve()),
            network=network,
        )

    def folder(self, replica: str) -> Path:
        """Made if it isn't there."""
        folder = self._folders / self._places.get(replica, place_of(OWN)) / replica
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def open_up(self, folder: Path) -> None:
        """Let workers read what is below, if they are other users. Blocks."""
        if self.for_other_users:
            let_others_read(folder)

    def clear(self, replica: str) -> None:
        self._places.pop(replica, None)
        for root in (self._folders, self._scratch):
            for path in root.glob(f"*/{replica}"):  # of a worker that was found, the place isn't known
                remove_tree(path)

    def clear_zygote(self, pool: str) -> None:
        """Its own; those of its workers lie elsewhere or are gone."""
        remove_tree(self._scratch / place_of(pool))

    def clear_all(self) -> None:
        for folder in (self._folders, self._scratch):
            remove_tree(folder)


def place_of(pool: str) -> str:
    return hashlib.sha256(pool.encode()).hexdigest()[:16] if pool else "own"


def common_walls(config: ClusterConfig, tier: Tier) -> Walls:
    settings = config.agent.sandbox
    hidden = (config.data_dir, config.run_dir, config.artifacts_dir)
    return Walls(
        tier=tier,
        hidden=tuple(dict.fromkeys(str(Path(path).resolve()) for path in hidden)),
        readable=settings.readable,
        writable=settings.writable,
        scratch_mb=settings.scratch_mb,
        tasks_max=settings.tasks_max,
    )


def tier_here(config: ClusterConfig, node: str) -> BestTier:
    """To be asked while this process has one thread. Raises `ConfigError` if another tier must hold."""
    wanted = config.agent.sandbox.tier
    if wanted == NONE:
        return BestTier(Tier.NONE, ("agent.sandbox.tier asks for it",))
    rooms = Rooms(config.role_dir("agent", node), common_walls(config, Tier.NAMESPACES))
    name = "trial"
    try:
        found = trial.best(rooms.walls(name), only=None if wanted == BEST else Tier(wanted))
    except OSError as error:
        raise ConfigError(f"no place for a sandbox can be made: {error}") from error
    finally:
        rooms.clear(name)
    if wanted not in (BEST, found.tier):
        raise ConfigError(
            f"agent.sandbox.tier = {wanted!r} doesn't hold here ({'; '.join(found.lacking)}); "
            'with "best" models run behind what does'
        )
    return msgspec.structs.replace(found, lacking=(*found.lacking, *_shut(config, found.tier)))


def _shut(config: ClusterConfig, tier: Tier) -> Iterator[str]:
    """What models were to read or write and can't."""
    settings = config.agent.sandbox
    others = tier is Tier.NAMESPACES and os.geteuid() == 0
    for field, paths, bit in (("readable", settings.readable, 0o4), ("writable", settings.writable, 0o2)):
        for path in paths:
            try:
                mode = os.stat(path).st_mode
            except OSError as error:
                yield f"agent.sandbox.{field}: {path}: {error.strerror}"
                continue
            bits = bit | (0o1 if stat.S_ISDIR(mode) else 0)
            if others and mode & bits != bits:
                yield f"agent.sandbox.{field}: {path} is closed to other users, as which models run here"
