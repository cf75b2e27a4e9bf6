"""Tables for terminals: a row is one line at any width. What names can be shortened, numbers can't."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text


def table(shrinking: tuple[str, ...], fixed: tuple[str, ...], right: tuple[str, ...] = ()) -> Table:
    """`shrinking` columns (fill them with `name` or `shortened`) give way to the `fixed` ones after them."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in shrinking:
        made.add_column(column)
    for column in fixed:
        made.add_column(column, no_wrap=True, justify="right" if column in right else "left")
    return made


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def one_line(text: str) -> str:
    """What others wrote, such as a runtime's message of several lines."""
    return " ".join(text.split())


def name(text: str) -> Text:
    return shortened(Text(text, style="bold"))


def shortened(text: Text | str) -> Text:
    """Cut with an ellipsis where there is no room, never wrapped."""
    cut = Text(text) if isinstance(text, str) else text
    cut.no_wrap, cut.overflow = True, "ellipsis"
    return cut
