"""What a process is called in `ps` and `top`: what it serves, also if it was forked from another one."""

from __future__ import annotations

from setproctitle import getproctitle, setproctitle


def keep_room() -> None:
    """Find where the title lives, in a process that is about to change its environment, which lies there."""
    getproctitle()


def title(text: str) -> None:
    """Such as "worker digits/cnn-large"."""
    setproctitle(f"understudy {text}")
