"""Names that operators meet, each with what it means. The reference pages are generated from here."""

from __future__ import annotations

# Log entries and cluster events, `noun.verb_past`.
EVENTS: dict[str, str] = {
    # gateway
    # worker
    # agent
    # controller
    # cli
}
