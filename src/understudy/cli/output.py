"""What commands write: results to standard output, everything else to standard error.

With `--json` standard output carries JSON and nothing else. Colours and live displays are for terminals
only; rich decides, and honours NO_COLOR.
"""

from __future__ import annotations

import json
import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from understudy.cli.exits import Exit, exit_of
from understudy.wire.errors import CommandError, UnderstudyError, presentable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType, RenderHook

PIPED_COLUMNS = 200  # a pipe has no width; tables take what they need up to this


class Output:
    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json

    @cached_property
    def stdout(self) -> Console:
        return _console(stderr=False)

    @cached_property
    def stderr(self) -> Console:
        return _console(stderr=True)

    def show(self, *renderables: RenderableType) -> None:
        """For people: tables and text."""
        for renderable in renderables:
            self.stdout.print(renderable)

    def data(self, value: Any, *, lines: bool = False) -> None:
        """For machines: `value` as JSON, indented, or on one line where a stream of values is written."""
        sys.stdout.write(_json(value, indent=None if lines else 2) + "\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Progress and remarks, for people, on standard error."""
        self.stderr.print(text, markup=False, highlight=False, soft_wrap=True)

    def error(self, error: UnderstudyError) -> Exit:
        """Say what went wrong and how to mend it; returns the exit status that goes with it."""
        hint = error.hint if isinstance(error, CommandError) else ""
        if self.as_json:
            document = {"error": str(error), "code": error.code.value}
            if hint:
                document["hint"] = hint
            sys.stderr.write(_json(document, indent=None) + "\n")
        else:
            from rich.text import Text

            text = Text.assemble(("error: ", "bold red"), str(error))
            if hint:
                text.append_text(Text.assemble("\n", (" hint: ", "cyan"), hint))
            self.stderr.print(text, soft_wrap=True, highlight=False)
        return exit_of(error.code)


def _json(value: Any, *, indent: int | None) -> str:
    try:
        encoded = msgspec.json.encode(value)
    except UnicodeEncodeError:  # a path, whose bytes are no text: they survive as escapes
        return json.dumps(msgspec.to_builtins(value), indent=indent)
    return (encoded if indent is None else msgspec.json.format(encoded, indent=indent)).decode()


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=stderr, highlight=False, width=PIPED_COLUMNS)
    console.push_render_hook(_hook())
    return console


def _hook() -> RenderHook:
    """Shows what a terminal would obey as escapes, wherever it stands: names, messages and events come from
    anybody who may deploy, and from models.
    """
    from rich.console import ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
    from rich.segment import Segment

    class Harmless:
        def __init__(self, inner: ConsoleRenderable) -> None:
            self._inner = inner

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for text, style, control in console.render(self._inner, options):
                yield Segment(text if control else presentable(text), style, control)

    class Hook(RenderHook):
        def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
            return [Harmless(each) for each in renderables]

    return Hook()
