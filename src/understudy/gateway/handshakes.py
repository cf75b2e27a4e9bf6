"""TLS connections are let in here: within the bound on connections, and each handshake counts as one.

A loop's own servers tell of a connection when its handshake is over. Clients that begin one and fall silent
would each hold a socket until the handshake's time is over, without being counted.
"""

from __future__ import annotations

import asyncio
import socket

from understudy.gateway.api import Api
from understudy.gateway.http import HttpConnection
from understudy.gateway.tls import ServerContext
from understudy.settings.gateway import HttpLimits

ACCEPTED_MAX = 64  # in one turn of the loop
PAUSE_S = 0.1  # when no descriptor is left: the kernel would call us again at once


class TlsListener:
    """Serves one listening socket until it is closed. Connections that were let in go on."""

    def __init__(
        self,
        listener: socket.socket,
        context: ServerContext,
        api: Api,
        limits: HttpLimits,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._listener = listener
        self._context = context
        self._api = api
        self._limits = limits
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        listener.setblocking(False)
        self._listen()

    def close(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()

    def _listen(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        handshakes = self._api.handshakes
        for _ in range(ACCEPTED_MAX):
            try:
                client, address = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:
                self._loop.remove_reader(self._listener.fileno())
                self._loop.call_later(PAUSE_S, self._listen)
                return
            connection = HttpConnection(self._api, self._limits, str(address[0]))
            if not self._api.connections.add(connection):
                self._api.connections.discard(connection)
                client.close()  # before a handshake nothing can be said to it
                continue
            client.setblocking(False)
            task = connection.handshake = self._tasks.create_task(self._shake_hands(client, connection))
            handshakes.add(task)
            task.add_done_callback(handshakes.discard)

    async def _shake_hands(self, client: socket.socket, connection: HttpConnection) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection,
                client,
                ssl=self._context,
                ssl_handshake_timeout=self._limits.header_timeout_s,
            )
        except OSError:
            pass  # it speaks no TLS, isn't trusted, was too slow or is gone
        except Exception as error:  # the group of tasks would end with it, and every connection
            self._api.crashes.contain("handshake", error)
            client.close()
        finally:
            connection.handshake = None
            if connection.gone:
                self._api.connections.discard(connection)
