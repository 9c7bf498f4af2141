"""A pod: the launcher as its container, and the kubelet's part of its life.

The kubelet probes readiness, runs preStop, sends SIGTERM, kills after the grace period, and restarts a container that
has exited by itself. Removing a deleted pod from the proxy is the endpoint controller's part, which takes a moment.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from benchmarks.fleet.chart import PodTimings
from benchmarks.fleet.proxy import Proxy
from benchmarks.processes import NoSuchProcess, Process
from launcher.settings import REPOSITORY_ROOT

ENDPOINT_DELAY_S = 2.0
"""From the deletion of a pod until the proxy sends it no new connections. Kubernetes gives no number."""

_REAP_TIMEOUT_S = 10.0
_OPENER = build_opener(ProxyHandler({}))


class State(Enum):
    """States of a pod."""

    RUNNING = "running"
    TERMINATING = "terminating"
    GONE = "gone"


@dataclass(frozen=True)
class Slot:
    """A place for a pod: its name in the proxy and its ports, as a node's GPU would be."""

    name: str
    port: int
    triton_ports: tuple[int, int, int]  # HTTP, gRPC, metrics


@dataclass
class Pod:
    """One pod, from its creation on. Its thread is the kubelet."""

    name: str
    slot: Slot
    generation: str
    settings: Mapping[str, str]
    timings: PodTimings
    proxy: Proxy
    folder: Path
    created_s: float = field(default_factory=time.monotonic)
    state: State = State.RUNNING
    ready_since_s: float | None = None
    deleted_s: float | None = None
    ended_s: float | None = None
    restarts: int = 0
    exit_status: int | None = None
    was_killed: bool = False  # after the grace period
    failure: str | None = None  # of its kubelet, which is the proof's own
    _deleted: threading.Event = field(default_factory=threading.Event)
    _process: subprocess.Popen[bytes] | None = None
    _kubelet: threading.Thread | None = None

    def start(self) -> None:
        """Starts the container and its kubelet."""
        self._process = self._spawn()
        self._kubelet = threading.Thread(target=self._live, name=f"kubelet-{self.name}", daemon=True)
        self._kubelet.start()

    @property
    def pid(self) -> int:
        """Process id of the launcher."""
        assert self._process is not None
        return self._process.pid

    @property
    def address(self) -> str:
        """Host and port of the front end."""
        return f"127.0.0.1:{self.slot.port}"

    @property
    def is_ready(self) -> bool:
        """Whether the kubelet reports it as ready."""
        return self.state is State.RUNNING and self.ready_since_s is not None

    @property
    def is_available(self) -> bool:
        """Whether it has been ready for minReadySeconds."""
        since_s = self.ready_since_s
        return self.is_ready and since_s is not None and time.monotonic() - since_s >= self.timings.min_ready_s

    def delete(self) -> None:
        """Deletes the pod: its kubelet ends it."""
        if not self._deleted.is_set():
            self.state, self.deleted_s = State.TERMINATING, time.monotonic()
            self._deleted.set()

    def terminate_without_notice(self) -> None:
        """Sends SIGTERM alone: the proxy has to find out by the probe. The container is restarted."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kills all processes of the container at once, as the kernel does when its first process dies."""
        with suppress(NoSuchProcess):
            launcher = Process(self.pid)
            for process in (launcher, *launcher.children(recursive=True)):
                with suppress(NoSuchProcess):
                    process.kill()

    def join(self, timeout_s: float) -> None:
        """Waits until the pod is gone."""
        if self._kubelet is not None:
            self._kubelet.join(timeout_s)

    def close(self) -> None:
        """Ends the container at once, at the end of the proof."""
        self._deleted.set()
        self.state = State.GONE
        self.kill()
        if self._process is not None:
            self._process.wait(_REAP_TIMEOUT_S)

    # --- The kubelet ---

    def _live(self) -> None:
        try:
            self._probe_until_deleted()
            if self.state is State.TERMINATING:
                self._end()
        except Exception as error:  # noqa: BLE001 - Deployment.wait raises it
            self.failure = repr(error)

    def _probe_until_deleted(self) -> None:
        failures = 0
        while not self._deleted.wait(self.timings.probe_period_s):
            assert self._process is not None
            if self._process.poll() is not None:
                self._restart()
                failures = 0
            elif self._probe():
                failures = 0
                if self.ready_since_s is None:
                    self.ready_since_s = time.monotonic()
                    self.proxy.set_state(self.slot.name, "ready")
            else:
                failures += 1
                if failures >= self.timings.probe_failures:
                    self.ready_since_s = None

    def _probe(self) -> bool:
        try:
            with _OPENER.open(f"http://{self.address}/health/ready", timeout=self.timings.probe_timeout_s) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def _restart(self) -> None:
        self.restarts += 1
        self.ready_since_s = None
        self._process = self._spawn()

    def _end(self) -> None:
        """preStop, SIGTERM, and SIGKILL after the grace period; the proxy learns of it while preStop runs."""
        assert self.deleted_s is not None
        assert self._process is not None
        self._sleep_until(self.deleted_s + min(ENDPOINT_DELAY_S, self.timings.pre_stop_s))
        self.proxy.set_state(self.slot.name, "drain")
        self._sleep_until(self.deleted_s + self.timings.pre_stop_s)
        self._signal(signal.SIGTERM)
        try:
            self.exit_status = self._process.wait(self.deleted_s + self.timings.grace_s - time.monotonic())
        except subprocess.TimeoutExpired:
            self.was_killed = True
            self._signal(signal.SIGKILL)
            self._process.wait()
        self.proxy.set_state(self.slot.name, "maint")
        self.ended_s, self.state = time.monotonic(), State.GONE

    @staticmethod
    def _sleep_until(time_s: float) -> None:
        time.sleep(max(0.0, time_s - time.monotonic()))

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _spawn(self) -> subprocess.Popen[bytes]:
        http, grpc, metrics = self.slot.triton_ports
        environment = {
            **os.environ,
            **self.settings,
            "PORT": str(self.slot.port),
            "TRITON_HTTP_PORT": str(http),
            "TRITON_GRPC_PORT": str(grpc),
            "TRITON_METRICS_PORT": str(metrics),
            "RUN_DIR": str(self.folder / self.slot.name),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{self.name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "launcher"],
                cwd=REPOSITORY_ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
