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
from _signal import signal as set_handler  # type: ignore[import-not-found]  # the public one takes 9 us, not 1
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from time import monotonic
from typing import Any, TypeVar

import structlog

T = TypeVar("T")
Done = Callable[[Any, BaseException | None], None]

SIGNALS = (signal.SIGTERM, signal.SIGINT)
REPORT_INTERVAL_S = 60.0  # between two reports of what a model's signal handlers raise

log = structlog.get_logger()


class _Call:
    """Something that is asked. It runs once, and what came of it is told once, however often it is tried."""

    __slots__ = ("_argument", "_done", "_function", "_loop", "_outcome", "_told", "begun")

    def __init__(self, function: Callable[..., Any], argument: Any, done: Done) -> None:
        self.begun = False
        self._function = function
        self._argument = argument
        self._done = done
        self._loop = asyncio.get_running_loop()
        self._outcome: tuple[Any, BaseException | None] | None = None
        self._told = False

    def run(self) -> BaseException | None:
        """What it raised."""
        try:
            self.begun = True
            self._outcome = self._function(self._argument), None
        except BaseException as raised:
            self.fail(raised)
        return self._outcome[1] if self._outcome is not None else None

    def fail(self, error: BaseException) -> None:
        """This came of it, if nothing has yet."""
        self._outcome = self._outcome or (None, error)

    def tell(self) -> None:
        if not self._loop.is_closed():  # else nobody waits
            self._loop.call_soon_threadsafe(self._tell_once)

    def _tell_once(self) -> None:
        if not self._told and self._outcome is not None:
            self._told = True
            self._done(*self._outcome)


class ModelThread:
    """Runs one call after the other. To be made by the main thread, which then calls `serve`.

    SIGTERM and SIGINT are the worker's: whatever the model does here, they are heard in the other thread, and
    what it installs for them is taken back after each call.
    Python runs their handlers in this one, which may be busy for long; so the handlers do nothing, and what
    is heard are the numbers that the interpreter writes to a socket as the signals come.

    Other signals are the model's, and a handler of its own may raise between any two instructions of this
    thread, also when nothing is asked of the model. So what is asked stays in the queue until it is told.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._calls: deque[_Call] = deque()  # the first one may have begun
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._ended = False
        self._report_due_s = 0.0
        self._unreported = 0
        self._heard, self._written = socket.socketpair()
        self._heard.setblocking(False)
        self._written.setblocking(False)
        self._keep_signals()

    def serve(self) -> None:
        """Run what is asked until `end`."""
        while True:
            try:
                while True:
                    try:
                        self._serve()
                        return
                    except BaseException as error:
                        self._raised_between(error)
            except BaseException:  # one more, while the former was told
                self._unreported += 1

    def _serve(self) -> None:
        while True:
            while self._calls:
                self._run(self._calls[0])
                self._calls.popleft()
            if self._ended:
                return
            self._bell.get()

    def _run(self, call: _Call) -> None:
        if not call.begun:
            error = call.run()
            if os.getpid() != self._pid:
                _end_child(error)
        else:
            call.fail(InterruptedError("a signal handler of the model raised"))
        self._keep_signals()
        call.tell()

    def _raised_between(self, error: BaseException) -> None:
        """A signal handler of the model's raised while none of its code ran."""
        if os.getpid() != self._pid:
            _end_child(error)
        if self._calls and self._calls[0].begun:
            self._calls[0].fail(error)
        if monotonic() < self._report_due_s:
            self._unreported += 1
            return
        self._report_due_s = monotonic() + REPORT_INTERVAL_S
        log.warning("model.signal_raised", error=repr(error), unreported=self._unreported, exc_info=error)
        self._unreported = 0

    @property
    def busy(self) -> bool:
        """Whether something that was asked has not ended, begun or not."""
        return bool(self._calls)

    def call(self, function: Callable[..., Any], argument: Any, done: Done) -> None:
        """Have `function(argument)` run, and then `done(result, error)` on the caller's loop.

        To be called by one thread only.
        """
        self._calls.append(_Call(function, argument, done))
        self._bell.put(None)

    async def ask(self, function: Callable[..., T], *arguments: Any) -> T:
        """What `function(*arguments)` returns or raises here."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.call(lambda given: function(*given), arguments, partial(_settle, answer))
        return await answer

    def end(self) -> None:
        self._ended = True
        self._bell.put(None)

    def _keep_signals(self) -> None:
        """A model may have taken them in its call."""
        signal.set_wakeup_fd(self._written.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            set_handler(number, _ignore)

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


def _ignore(*_: object) -> None:
    """A handler for what is heard elsewhere."""


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
