"""`Client`: the same calls for code that doesn't await.

An `AsyncClient` on an event loop in a thread of its own. So every call of every thread shares connections,
budgets and what is known of the gateways, and a notebook, whose own loop is running, can use it too.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any, Self, TypeVar

from understudy.client.asynchronous import TIMEOUT_S, Answer, AsyncClient, ModelMetadata, ModelState
from understudy.client.errors import Closed
from understudy.wire.errors import Code

T = TypeVar("T")


class _LoopThread:
    """An event loop in a daemon thread, until `stop`; the last thing it does is to await `close()`."""

    def __init__(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.pid = os.getpid()
        self._close = close
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()  # whatever is submitted comes before the stop
        self._stopped = False
        self._thread = threading.Thread(target=self._serve, name="understudy-client", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            running = asyncio.all_tasks(self._loop)
            for task in running:
                task.cancel()
            if running:
                self._loop.run_until_complete(asyncio.wait(running))
            self._loop.run_until_complete(self._close())
        finally:
            self._loop.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Its result. Whatever interrupts the wait, such as Ctrl-C, cancels it."""
        with self._lock:
            if self._stopped:
                coroutine.close()
                raise Closed(Code.CANCELLED, "this client is closed")
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise Closed(Code.CANCELLED, "this client was closed during the call") from None
        finally:
            future.cancel()

    def stop(self) -> None:
        if self.pid != os.getpid():
            return  # a forked child has no such thread
        with self._lock:
            if not self._stopped:
                self._stopped = True
                self._loop.call_soon_threadsafe(self._loop.stop)

    def join(self) -> None:
        self._thread.join()


class Client:
    """Calls models through one or several gateways; see `AsyncClient` for the arguments.

    Safe to share among threads. After a fork (not during a call) the child gets connections of its own.
    Close it or use it in a `with` block; one that is forgotten is closed when it is collected. Not for use
    in coroutines, which it would block: they have `AsyncClient`.
    """

    def __init__(
        self,
        gateways: str | Sequence[str],
        *,
        api_key: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        timeout_s: float = TIMEOUT_S,
        hedge: bool = True,
        check: bool = True,
    ) -> None:
        def make() -> AsyncClient:
            return AsyncClient(
                gateways, api_key=api_key, ca=ca, timeout_s=timeout_s, hedge=hedge, check=check
            )

        self._make = make
        self._client = make()
        self._lock = threading.Lock()
        self._closed = False
        self._thread: _LoopThread | None = None
        self._before_fork: list[Any] = []  # kept, since the parent's sockets are not ours to tidy

    def __repr__(self) -> str:
        return repr(self._client).replace("AsyncClient", "Client", 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Calls under way in other threads, and later ones, raise `Closed`."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is not None and thread.pid == os.getpid():
            thread.stop()
            thread.join()

    def infer(
        self,
        app: str,
        inputs: Any,
        *,
        outputs: Sequence[str] | None = None,
        version: int | str | None = None,
        datatypes: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        idempotent: bool = True,
        request_id: str | None = None,
    ) -> Answer:
        """Ask `app` once; see `AsyncClient.infer`."""
        thread = self._running()
        return thread.run(
            self._client.infer(
                app,
                inputs,
                outputs=outputs,
                version=version,
                datatypes=datatypes,
                timeout_s=timeout_s,
                idempotent=idempotent,
                request_id=request_id,
            )
        )

    def metadata(
        self, app: str, *, version: int | str | None = None, timeout_s: float | None = None
    ) -> ModelMetadata:
        """What `app` takes and gives; see `AsyncClient.metadata`."""
        thread = self._running()
        return thread.run(self._client.metadata(app, version=version, timeout_s=timeout_s))

    def models(self, *, timeout_s: float | None = None) -> tuple[ModelState, ...]:
        """Every model that the gateway knows; see `AsyncClient.models`."""
        thread = self._running()
        return thread.run(self._client.models(timeout_s=timeout_s))

    def ready(self, app: str | None = None, *, timeout_s: float | None = None) -> bool:
        """Whether `app` (None: anything at all) would be answered now; see `AsyncClient.ready`."""
        thread = self._running()
        return thread.run(self._client.ready(app, timeout_s=timeout_s))

    def _running(self) -> _LoopThread:
        with self._lock:
            if self._closed:
                raise Closed(Code.CANCELLED, "this client is closed")
            if self._thread is None or self._thread.pid != os.getpid():
                if self._thread is not None:
                    self._before_fork += [self._thread, self._client]
                    self._client = self._make()
                self._thread = _LoopThread(self._client.close)
                weakref.finalize(self, self._thread.stop)
            return self._thread
