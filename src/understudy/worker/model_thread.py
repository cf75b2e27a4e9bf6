"""The main thread of a worker, where a model is asked everything: libraries expect no other.

A handle that belongs to one thread, thread-local state, signal handlers and an event loop of the model's
own work there, from load to unload. Nothing of ours runs there but the calls themselves: the event loop and
whatever answers for this process live in a second thread.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
Done = Callable[[Any, BaseException | None], None]

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class ModelThread:
    """Runs one call after the other. To be made by the main thread, which then calls `serve`.

    SIGTERM and SIGINT are the worker's: whatever the model does here, they are heard in the other thread.
    Python runs their handlers in this one, which may be busy for long; so the handlers do nothing, and what
    is heard are the numbers that the interpreter writes to a socket as the signals come.
    """

    def __init__(self) -> None:
        self._asked = 0  # calls; counted by those who ask
        self._served = 0  # counted here
        self._pid = os.getpid()
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._heard, self._written = socket.socketpair()
        self._heard.setblocking(False)
        self._written.setblocking(False)
        self._keep_signals()

    def serve(self) -> None:
        """Run what is asked until `end`."""
        for call in iter(self._calls.get, None):
            call()
            del call  # what it holds may be large
            self._served += 1

    @property
    def busy(self) -> bool:
        """Whether something that was asked has not ended, begun or not."""
        return self._asked != self._served

    def call(self, function: Callable[..., Any], argument: Any, done: Done) -> None:
        """Have `function(argument)` run, and then `done(result, error)` on the caller's loop.

        To be called by one thread only.
        """
        self._asked += 1
        self._calls.put(partial(self._run, asyncio.get_running_loop(), function, argument, done))

    async def ask(self, function: Callable[..., T], *arguments: Any) -> T:
        """What `function(*arguments)` returns or raises here."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.call(lambda given: function(*given), arguments, partial(_settle, answer))
        return await answer

    async def lend(self, function: Callable[..., T], *arguments: Any) -> T:
        """As `ask`, to code that may take our signals: they are taken back."""
        try:
            return await self.ask(function, *arguments)
        finally:
            self.call(lambda _: self._keep_signals(), None, _forget)

    def end(self) -> None:
        self._calls.put(None)

    def _keep_signals(self) -> None:
        signal.set_wakeup_fd(self._written.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, _ignore)

    def on_signal(self, callback: Callable[[], None]) -> None:
        """Have the running loop call `callback` at each signal of ours."""
        # By number: a loop that knows the object would keep it open in children.
        asyncio.get_running_loop().add_reader(self._heard.fileno(), self._hear, callback)

    def leave_to_child(self) -> None:
        """In a process that the model forked: signals end it, as they end any process."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._heard.close()
        self._written.close()

    def _hear(self, callback: Callable[[], None]) -> None:
        if any(number in SIGNALS for number in self._heard.recv(64)):  # a model's own signals come here too
            callback()

    def _run(
        self, loop: asyncio.AbstractEventLoop, function: Callable[..., Any], argument: Any, done: Done
    ) -> None:
        result, error = None, None
        try:
            result = function(argument)
        except BaseException as raised:
            error = raised
        if os.getpid() != self._pid:
            _end_child(error)
        try:
            loop.call_soon_threadsafe(done, result, error)
        except RuntimeError:  # the loop is closed: nobody waits
            return


def _ignore(*_: object) -> None:
    """A handler for what is heard elsewhere."""


def _forget(*_: object) -> None:
    """A `Done` for what nobody waits for."""


def _settle(answer: asyncio.Future[T], result: T, error: BaseException | None) -> None:
    if answer.cancelled():
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)


def _end_child(error: BaseException | None) -> None:
    """A model forked, and its child came back from the call: it has no more to do, and may not serve."""
    try:
        if error is not None and not isinstance(error, SystemExit):
            sys.__excepthook__(type(error), error, error.__traceback__)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        code = error.code if isinstance(error, SystemExit) else None if error is None else 1
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)
