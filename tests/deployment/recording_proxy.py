"""Stands between a SuperNode and its SuperLink, and keeps every byte that the SuperNode sends.

What it keeps are HTTP requests, the form in which Flower 1.41 calls its Fleet API.
"""

import contextlib
import socket
import socketserver
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

PUSH = "/v1/fleet/push-messages"


@dataclass(frozen=True)
class Call:
    """One HTTP request of a SuperNode.

    Attributes:
        method: `POST`, for all calls of the Fleet API.
        path: What is called.
        headers: Names and values, as they were sent.
        body: The request, as protobuf.
    """

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def raw(self) -> bytes:
        """Its bytes, as they were sent."""
        head = [f"{self.method} {self.path} HTTP/1.1", *(f"{k}: {v}" for k, v in self.headers)]
        return "\r\n".join(head).encode() + b"\r\n\r\n" + self.body


class RecordingProxy:
    """A TCP proxy on loopback, as a context.

    Args:
        upstream: Host and port of the server.
        before_push: Called with 1, 2, ... before the first, second, ... reply is passed on.

    Attributes:
        address: Host and port of the proxy.
    """

    def __init__(self, upstream: str, before_push: Callable[[int], None]) -> None:
        self._upstream = upstream
        self._before_push = before_push
        self._lock = threading.Lock()
        self._streams: list[bytearray] = []
        self._pushes = 0
        recorder = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                recorder._pass_on(self.request)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.address = "127.0.0.1:{1}".format(*self._server.server_address)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take no more connections, and wait until those that there are have ended."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def sent(self) -> bytes:
        """Every byte that was sent to the server, connection by connection."""
        return b"".join(self._streams)

    def calls(self) -> list[Call]:
        """The requests in what was sent."""
        return [call for stream in self._streams for call in _calls(bytes(stream))]

    def _pass_on(self, supernode: socket.socket) -> None:
        host, _, port = self._upstream.partition(":")
        stream = bytearray()
        with self._lock:
            self._streams.append(stream)
        with socket.create_connection((host, int(port))) as server:
            answers = threading.Thread(target=_copy, args=(server, supernode))
            answers.start()
            with contextlib.suppress(OSError):
                while sent := supernode.recv(1 << 16):
                    self._keep(stream, sent)
                    server.sendall(sent)
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_WR)
            answers.join()

    def _keep(self, stream: bytearray, sent: bytes) -> None:
        with self._lock:
            stream += sent
            pushes = sum(kept.count(f"POST {PUSH} ".encode()) for kept in self._streams)
            while self._pushes < pushes:
                self._pushes += 1
                self._before_push(self._pushes)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)


def _calls(stream: bytes) -> list[Call]:
    found = []
    while stream:
        head, _, rest = stream.partition(b"\r\n\r\n")
        first, *lines = head.decode("ascii").split("\r\n")
        method, path, version = first.split(" ")
        assert version == "HTTP/1.1"
        headers = tuple(
            (name, value) for name, _, value in (line.partition(": ") for line in lines)
        )
        length = next(int(value) for name, value in headers if name.lower() == "content-length")
        assert len(rest) >= length, "a request was cut off"
        found.append(Call(method, path, headers, rest[:length]))
        stream = rest[length:]
    return found
