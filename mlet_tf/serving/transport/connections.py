"""HTTP connections that are kept open between requests, with one deadline for all steps of a request."""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from mlet_tf.serving.transport.base import seconds_until

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class Connection(http.client.HTTPConnection):
    """HTTP or HTTPS, directly to the host: proxies in the environment are ignored.

    The deadline bounds connecting, sending and reading together, not each of them.

    Args:
        host: Name or address.
        port: Port.
        context: TLS settings; None for an unencrypted connection.
        server_name: Name in the server's certificate, if it differs from the host.
    """

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None, server_name: str | None) -> None:
        self.default_port = 443 if context else 80
        super().__init__(host, port)
        self.deadline = 0.0
        self._context = context
        self._server_name = server_name

    def connect(self) -> None:
        """Connects to the first of the host's addresses that answers."""
        self.sock = self._reach()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is not None:
            self.sock.settimeout(seconds_until(self.deadline))
            self.sock = self._context.wrap_socket(self.sock, server_hostname=self._server_name or self.host)

    def send(self, data: ReadableBuffer) -> None:  # type: ignore[override]  # Nothing else is sent here.
        """Sends bytes, of the head or of the body."""
        if self.sock is None:
            self.connect()
        left = memoryview(data)
        while left:
            self.sock.settimeout(seconds_until(self.deadline))
            left = left[self.sock.send(left) :]

    def response_class(  # type: ignore[override]  # A class there; whatever makes a response does.
        self, sock: socket.socket, **options: Any
    ) -> http.client.HTTPResponse:
        """The answer, read within the deadline."""
        response = http.client.HTTPResponse(sock, **options)
        response.fp = io.BufferedReader(_TimedReader(response.fp.detach(), sock, self.deadline))
        return response

    def _reach(self) -> socket.socket:
        failure = OSError(f"{self.host} has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(
            self.host, self.port, type=socket.SOCK_STREAM
        ):
            seconds = seconds_until(self.deadline)
            made = socket.socket(family, kind, protocol)
            try:
                made.settimeout(seconds)
                made.connect(address)
                return made
            except OSError as error:
                made.close()
                failure = error
        raise failure


class Pool:
    """Idle connections, of which the last one used is lent first.

    Args:
        make: Makes a connection, for when none is idle.
    """

    def __init__(self, make: Callable[[], Connection]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._closed = False

    @contextlib.contextmanager
    def lend(self, deadline: float) -> Iterator[Connection]:
        """Lends a connection on which all steps end by the deadline."""
        with self._lock:
            connection = self._idle.pop() if self._idle else self._make()
        connection.deadline = deadline
        try:
            yield connection
        except BaseException:
            # The rest of this answer may still arrive, and must not be taken for the next one.
            connection.close()
            raise
        finally:
            self._take_back(connection)

    def close(self) -> None:
        """Closes the idle connections now, and the others when they are returned."""
        with self._lock:
            self._closed = True
            for connection in self._idle:
                connection.close()
            self._idle.clear()

    def _take_back(self, connection: Connection) -> None:
        with self._lock:
            if self._closed:
                connection.close()
            elif connection.sock is not None:
                self._idle.append(connection)


class _TimedReader(io.RawIOBase):
    """Reads from a socket until a deadline."""

    def __init__(self, stream: io.RawIOBase, sock: socket.socket, deadline: float) -> None:
        self._stream = stream
        self._socket = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        self._socket.settimeout(seconds_until(self._deadline))
        return self._stream.readinto(buffer)

    def close(self) -> None:
        self._stream.close()
        super().close()
