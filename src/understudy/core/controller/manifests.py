"""Which manifest brought what to an app: `up` leaves alone what was deployed or removed since. Pure."""

from __future__ import annotations

import hashlib

from understudy.core.controller.stored import CurrentVersion
from understudy.wire.records import AppVersion


def noted(books: CurrentVersion | None, path: str, content: str, manifests_max: int) -> dict[str, str]:
    """What each manifest brought, the one at `path` `content`; beyond `manifests_max` the oldest go."""
    manifests = books.manifests if books else {}
    if not path:
        return manifests
    key = _key(path)
    others = [(other, brought) for other, brought in manifests.items() if other != key]
    return dict([*others, (key, content)][-manifests_max:])


def is_behind(path: str, content: str, books: CurrentVersion | None, app: AppVersion | None) -> bool:
    """Whether the manifest at `path` brought `content` before, so that whatever is there now is newer.

    A manifest at a path that was never seen is known by its content: its directory may have been moved. Where
    nothing is known of manifests, but something of the app (it was learned from a gateway, or deployed by a
    version that kept no such books), what is there stays.
    """
    if books is None:
        return False
    if books.manifests:
        brought = books.manifests.get(_key(path))
        return brought == content if brought else content in books.manifests.values()
    return app is None or not app.content


def left_alone(app: AppVersion | None) -> str:
    """What to tell of a manifest that is behind."""
    what = f"version {app.version}, deployed since" if app else "removed"
    return f"left as it is: {what}; `understudy deploy` brings the manifest's"


def _key(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()[:16]
