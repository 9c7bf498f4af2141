"""Which of Triton's own APIs are open, and for whom: arguments of tritonserver.

No program of this project uses the APIs in MANAGEMENT_APIS, so they are closed for everyone, not protected by a secret:
every user of a machine can read the arguments of a process, and tritonserver takes such a secret from nowhere else.
A restricted API expects a header, and these two cannot be sent (tried on Triton 2.51 with raw bytes; tests repeat it):
an HTTP/1.1 header with a line feed in its value, and a gRPC header with capital letters in its name.
"""

from __future__ import annotations

import http.client
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ApiName = Literal["shared-memory", "model-repository", "trace", "logging", "statistics", "model-config"]
MANAGEMENT_APIS: tuple[ApiName, ...] = (
    "shared-memory",
    "model-repository",
    "trace",
    "logging",
    "statistics",
    "model-config",
)
SECRET_HEADER = "triton-secret"  # for gRPC, Triton expects it with the prefix triton-grpc-protocol-
_INFERENCE = "inference"
_UNSENDABLE_NAME = "Closed"
_MAX_SOCKET_PATH = 107  # bytes; sun_path in sys/un.h


def closing_arguments(open_apis: Sequence[str] = ()) -> list[str]:
    """Returns the arguments that close every management API except `open_apis`."""
    closed = ",".join(api for api in MANAGEMENT_APIS if api not in open_apis)
    if not closed:
        return []
    value = secrets.token_hex(16)
    return [
        f"--http-restricted-api={closed}:{_UNSENDABLE_NAME}={value}\nclosed",
        f"--grpc-restricted-protocol={closed}:{_UNSENDABLE_NAME}={value}",
    ]


def inference_arguments(secret: str) -> list[str]:
    """Returns the arguments with which only requests that carry `secret` in SECRET_HEADER may use inference."""
    return [
        f"--http-restricted-api={_INFERENCE}:{SECRET_HEADER}={secret}",
        f"--grpc-restricted-protocol={_INFERENCE}:{SECRET_HEADER}={secret}",
    ]


@dataclass(frozen=True)
class TritonAddresses:
    """Where the HTTP and gRPC services of a local Triton listen: on loopback, or on sockets in a private directory."""

    http_port: int
    grpc_port: int
    socket_dir: Path | None = None

    @property
    def http_address(self) -> str:
        """The argument --http-address."""
        return "127.0.0.1" if self.socket_dir is None else f"unix:{self._http_socket}"

    @property
    def grpc_address(self) -> str:
        """The argument --grpc-address. Triton appends a colon and the port, which become part of a socket's name."""
        return "127.0.0.1" if self.socket_dir is None else f"unix:{self.socket_dir / 'grpc'}"

    @property
    def grpc_url(self) -> str:
        """The target of a gRPC client."""
        return f"{self.grpc_address}:{self.grpc_port}"

    @property
    def has_long_path(self) -> bool:
        """Whether a socket's path exceeds what the system allows."""
        return self.socket_dir is not None and len(self.grpc_url.removeprefix("unix:").encode()) > _MAX_SOCKET_PATH

    @property
    def _http_socket(self) -> Path:
        assert self.socket_dir is not None
        return self.socket_dir / "http"

    def remove_sockets(self) -> None:
        """Removes the sockets of a server that has ended: a killed one leaves them, and the next could not listen."""
        if self.socket_dir is not None:
            for path in (self._http_socket, Path(self.grpc_url.removeprefix("unix:"))):
                path.unlink(missing_ok=True)

    def connect_http(self, timeout_s: float) -> http.client.HTTPConnection:
        """Returns a connection to the HTTP service, opened by its first request."""
        if self.socket_dir is None:
            return http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=timeout_s)
        return _SocketConnection(self._http_socket, timeout_s)


class _SocketConnection(http.client.HTTPConnection):
    """HTTP over a Unix domain socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
