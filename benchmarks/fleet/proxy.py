"""A real haproxy in front of the pods, once as a gateway and once as a Service.

The gateway balances requests. Without `http-no-delay`, haproxy's HTTP mode would hold back a stream's text for 200 ms.

A Service balances connections, so it sends the requests of a kept connection to one pod, whatever becomes of it: here
by haproxy's TCP mode.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.fleet.chart import PodTimings
from benchmarks.systems.programs import ServerError, running_program

GATEWAY, SERVICE = "gateway", "service"
_REPLY_BYTES = 1 << 16
_TIMEOUT_S = 5.0
_CONFIGURATION = """
global
    stats socket {socket} mode 600 level admin
    maxconn 4000
defaults
    timeout connect 2s
    timeout client 600s
    timeout server 600s
    timeout check {timeout_ms}ms
    retries 3
    option redispatch 1
    balance leastconn
    option httpchk GET /health/ready
    http-check expect status 200
    default-server inter {period_ms}ms fall {failures} rise 1
listen gateway
    bind 127.0.0.1:{gateway_port}
    mode http
    option http-no-delay
    retry-on conn-failure empty-response
{servers}
listen service
    bind 127.0.0.1:{service_port}
    mode tcp
{servers}
"""


class Proxy:
    """A running haproxy. A pod's state is "ready", "drain" (no new connections) or "maint" (there is no such pod)."""

    def __init__(self, path: Path, urls: Mapping[str, str]) -> None:
        self.urls = urls  # by kind of proxy
        self._path = path

    def set_state(self, pod: str, state: str) -> None:
        """Changes the state of a pod in both. Raises ServerError if haproxy refuses."""
        for kind in self.urls:
            if reply := self._command(f"set server {kind}/{pod} state {state}"):
                raise ServerError(f"haproxy refused to set {pod} to {state}: {reply}")

    def _command(self, text: str) -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_TIMEOUT_S)
            connection.connect(str(self._path))
            connection.sendall(f"{text}\n".encode())
            return connection.recv(_REPLY_BYTES).decode().strip()


@contextmanager
def running_proxy(
    folder: Path, timings: PodTimings, pods: Mapping[str, int], ports: tuple[int, int]
) -> Iterator[Proxy]:
    """Runs haproxy for these pods (port by name), which checks their readiness as the chart's probe does.

    `ports` are those of the gateway and of the Service. Raises ServerError.
    """
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if program is None:
        raise ServerError("There is no haproxy. Debian and Ubuntu: apt-get install haproxy.")
    path = folder / "haproxy.sock"
    servers = "\n".join(f"    server {name} 127.0.0.1:{port} check disabled" for name, port in pods.items())
    configuration = folder / "haproxy.cfg"
    configuration.write_text(
        _CONFIGURATION.format(
            socket=path,
            timeout_ms=round(timings.probe_timeout_s * 1000),
            period_ms=round(timings.probe_period_s * 1000),
            failures=timings.probe_failures,
            gateway_port=ports[0],
            service_port=ports[1],
            servers=servers,
        )
    )
    urls = {kind: f"http://127.0.0.1:{port}" for kind, port in zip((GATEWAY, SERVICE), ports, strict=True)}
    command = [program, "-db", "-f", str(configuration)]
    with running_program(command, log=folder / "haproxy.log", is_ready=path.exists):
        yield Proxy(path, urls)
