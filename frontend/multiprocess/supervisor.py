"""Supervises several worker processes as one front end: starts, restarts and stops them.

Each worker has a listening socket of its own on the same port (SO_REUSEPORT), so the kernel spreads connections evenly.
The supervisor creates the sockets and keeps them open: when a worker dies, new connections wait in its socket until its
replacement accepts them. Workers are new programs instead of forks, because gRPC does not support forking.
"""

from __future__ import annotations

import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import structlog

from frontend.multiprocess.merged_metrics import retain_dead_worker_counters
from frontend.multiprocess.shared_state import SharedState
from frontend.settings import FrontendSettings
from llm_pipeline.runtime.subprocesses import RestartBackoff, end_with_parent

log = structlog.get_logger(__name__)

_BACKLOG = 2048


@dataclass(frozen=True)
class SupervisorTimeouts:
    """Times in seconds."""

    check_interval_s: float = 0.2
    start_timeout_s: float = 60.0  # until the first heartbeat
    heartbeat_timeout_s: float = 30.0  # after this long without a heartbeat the worker is considered hung
    restart_delays_s: tuple[float, ...] = (0.0, 0.5, 2.0, 5.0)
    stable_s: float = 30.0  # a worker that ran for longer is restarted without a delay
    exit_grace_s: float = 10.0  # beyond the drain: for last writes and the engine's confirmations


@dataclass
class _Worker:
    number: int
    process: subprocess.Popen[bytes]
    started_s: float  # monotonic
    backoff: RestartBackoff
    restart_at_s: float | None = None  # monotonic; set when the process has ended


class Supervisor:
    """Runs until SIGTERM or SIGINT, then drains the workers. A second signal ends them at once.

    `worker_module` is run as `python -m worker_module FOLDER NUMBER COUNT SOCKET`.
    """

    def __init__(
        self,
        settings: FrontendSettings,
        *,
        worker_module: str = "frontend.worker_main",
        timeouts: SupervisorTimeouts | None = None,
    ) -> None:
        self._settings = settings
        self._worker_module = worker_module
        self._timeouts = timeouts or SupervisorTimeouts()
        self._count = settings.frontend_workers
        self._signals = 0
        self._wake_out, self._wake_in = socket.socketpair()

    def run(self) -> int:
        """Returns the exit status: 0 after a signal, or that of the first worker if it could not start."""
        try:
            sockets = listening_sockets(self._settings.host, self._settings.port, self._count)
        except OSError as error:
            address = f"{self._settings.host}:{self._settings.port}"
            sys.stderr.write(f"The front end cannot listen on {address} (HOST, PORT): {error.strerror}\n")
            return 1
        with ExitStack() as resources:
            self._sockets = [resources.enter_context(listener) for listener in sockets]
            folder = resources.enter_context(tempfile.TemporaryDirectory(prefix="triton-completions-"))
            self._folder = Path(folder)
            self._shared = SharedState.create(self._folder, self._count)
            self._install_signal_handlers()
            return self._supervise()

    def _install_signal_handlers(self) -> None:
        for end in (self._wake_in, self._wake_out):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wake_in.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCHLD, _ignore)  # a handler is needed for the wake-up

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1

    def _supervise(self) -> int:
        # The first worker starts alone, so that invalid settings or an unreadable file are reported only once.
        first = self._start(0)
        status = self._wait_for_heartbeat(first)
        if status is not None:
            return status
        workers = [first]
        while not self._signals:
            if len(workers) < self._count:
                workers.append(self._start(len(workers)))
                continue
            self._sleep(self._timeouts.check_interval_s)
            for index, worker in enumerate(workers):
                workers[index] = self._check(worker)
        self._stop(workers)
        return 0

    def _wait_for_heartbeat(self, first: _Worker) -> int | None:
        """Returns None once the first worker is alive, or the exit status if it could not start."""
        while not self._signals and not self._shared.last_heartbeat_s(0):
            status = first.process.poll()
            if status is not None:
                return status if status > 0 else 1
            if time.monotonic() - first.started_s > self._timeouts.start_timeout_s:
                first.process.kill()
            self._sleep(self._timeouts.check_interval_s / 4)
        return None

    def _start(self, number: int, backoff: RestartBackoff | None = None) -> _Worker:
        listener = self._sockets[number].fileno()
        arguments = [str(self._folder), str(number), str(self._count), str(listener)]
        process = subprocess.Popen(
            [sys.executable, "-m", self._worker_module, *arguments],
            stdin=subprocess.DEVNULL,
            pass_fds=(listener,),
            preexec_fn=end_with_parent,  # noqa: PLW1509 - one system call, which takes no lock
        )
        timeouts = self._timeouts
        backoff = backoff or RestartBackoff(timeouts.restart_delays_s, stable_s=timeouts.stable_s)
        return _Worker(number, process, time.monotonic(), backoff)

    def _check(self, worker: _Worker) -> _Worker:
        """Restarts a worker that has ended, and kills one that hangs. Returns the worker that runs in its place."""
        now_s = time.monotonic()
        if worker.restart_at_s is not None:
            return self._restart(worker) if now_s >= worker.restart_at_s else worker
        status = worker.process.poll()
        if status is None:
            self._kill_if_hung(worker, now_s)
            return worker
        self._clear(worker.number)
        delay_s = worker.backoff.next_delay_s(now_s - worker.started_s)
        log.error("worker_ended", worker=worker.number, status=status, starts_again_in_s=delay_s)
        worker.restart_at_s = now_s + delay_s
        return worker if delay_s else self._restart(worker)

    def _clear(self, number: int) -> None:
        self._shared.clear(number)
        try:
            retain_dead_worker_counters(self._shared, number)
        except OSError as error:  # the disk is full: the next worker overwrites the counters of this one
            log.error("counts_not_kept", worker=number, reason=error.strerror)

    def _restart(self, worker: _Worker) -> _Worker:
        try:
            return self._start(worker.number, worker.backoff)
        except OSError as error:  # out of memory or of processes, which may pass
            log.error("worker_not_started", worker=worker.number, reason=error.strerror)
            worker.restart_at_s = time.monotonic() + self._timeouts.restart_delays_s[-1]
            return worker

    def _kill_if_hung(self, worker: _Worker, now_s: float) -> None:
        heartbeat_s = self._shared.last_heartbeat_s(worker.number)
        timeout_s = self._timeouts.heartbeat_timeout_s if heartbeat_s else self._timeouts.start_timeout_s
        if now_s - max(heartbeat_s, worker.started_s) > timeout_s:
            log.error("worker_hangs", worker=worker.number)
            worker.process.kill()

    def _stop(self, workers: Iterable[_Worker]) -> None:
        """Lets the workers drain. Sockets are closed first: connections must not wait in that of an ended worker."""
        processes = [worker.process for worker in workers]
        for listener in self._sockets:
            listener.close()
        deadline_s = time.monotonic() + self._settings.drain_timeout_s + self._timeouts.exit_grace_s
        forwarded = 0
        while any(process.poll() is None for process in processes):
            if forwarded < self._signals:
                forwarded += 1
                _signal_all(processes, signal.SIGTERM)
            if time.monotonic() > deadline_s:
                log.warning("workers_killed", reason="they did not end in time")
                _signal_all(processes, signal.SIGKILL)
            self._sleep(self._timeouts.check_interval_s)

    def _sleep(self, timeout_s: float) -> None:
        """Returns at a signal, or after the timeout."""
        readable, _, _ = select.select([self._wake_out], [], [], timeout_s)
        if readable:
            self._wake_out.recv(4096)


def listening_sockets(host: str, port: int, count: int) -> list[socket.socket]:
    """Opens `count` sockets on one address. Raises OSError if another program listens there."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Without SO_REUSEPORT: with it, a second front end on the same port would not be detected.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        address = (address[0], probe.getsockname()[1], *address[2:])
    return [_listening_socket(family, address) for _ in range(count)]


def _listening_socket(family: int, address: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(address)
    listener.listen(_BACKLOG)
    return listener


def _signal_all(processes: Iterable[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    pass
