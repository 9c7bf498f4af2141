"""Several workers as one front end: starts them, starts them again, and ends them together.

Each worker has a listening socket of its own on the same port (SO_REUSEPORT), so the kernel spreads connections evenly.
The supervisor makes the sockets and keeps them open: when a worker dies, connections wait in its socket until another
has taken its place. Workers are programs of their own, not forks: gRPC and forks do not go together.
"""

from __future__ import annotations

import ctypes
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import structlog

from frontend.multiprocess.merged_metrics import retain_dead_worker_counters
from frontend.multiprocess.shared_state import SharedState
from frontend.settings import FrontendSettings

log = structlog.get_logger(__name__)

_BACKLOG = 2048
_LOOK_S = 0.2
_START_LIMIT_S = 60.0
_SILENCE_LIMIT_S = 30.0  # an event loop that shows no life for so long will not do so again
_RESTART_PAUSES_S = (0.0, 0.5, 2.0, 5.0)
_STABLE_S = 30.0
_LAST_SECONDS_S = 10.0  # beyond the drain: last writes, and the engine's confirmations
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass
class _Worker:
    number: int
    process: subprocess.Popen[bytes]
    started_s: float  # monotonic
    deaths: int = 0  # in a row, each soon after its start
    start_again_s: float = 0.0  # monotonic; when it is dead


class Supervisor:
    """Runs until SIGTERM or SIGINT. A second one ends the workers at once."""

    def __init__(self, settings: FrontendSettings) -> None:
        self._settings = settings
        self._count = settings.frontend_workers
        self._signals = 0
        self._wake_out, self._wake_in = socket.socketpair()

    def run(self) -> int:
        """The exit status: 0 after a signal, or that of the first worker when it could not start."""
        try:
            sockets = listening_sockets(self._settings.host, self._settings.port, self._count)
        except OSError as error:
            address = f"{self._settings.host}:{self._settings.port}"
            sys.stderr.write(f"The front end cannot listen on {address} (HOST, PORT): {error.strerror}\n")
            return 1
        with ExitStack() as resources:
            self._sockets = [resources.enter_context(each) for each in sockets]
            folder = resources.enter_context(tempfile.TemporaryDirectory(prefix="triton-completions-"))
            self._folder = Path(folder)
            self._workers = SharedState.create(self._folder, self._count)
            self._listen_to_signals()
            return self._supervise()

    def _listen_to_signals(self) -> None:
        for end in (self._wake_in, self._wake_out):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wake_in.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCHLD, _ignore)  # only to wake us

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1

    def _supervise(self) -> int:
        # Settings that don't work, or a file that can't be read: one worker finds out and says so, not all of them.
        first = self._start(0)
        status = self._await_life(first)
        if status is not None:
            return status
        children = [first]
        while not self._signals:
            if len(children) < self._count:
                children.append(self._start(len(children)))
                continue
            self._sleep(_LOOK_S)
            for index, child in enumerate(children):
                children[index] = self._look_after(child)
        self._stop(children)
        return 0

    def _await_life(self, first: _Worker) -> int | None:
        """None when the first worker lives; its exit status when it does not."""
        while not self._signals and not self._workers.last_beat_s(0):
            status = first.process.poll()
            if status is not None:
                return status if status > 0 else 1
            if time.monotonic() - first.started_s > _START_LIMIT_S:
                first.process.kill()
            self._sleep(_LOOK_S / 4)
        return None

    def _start(self, number: int) -> _Worker:
        listener = self._sockets[number].fileno()
        arguments = [str(self._folder), str(number), str(self._count), str(listener)]
        process = subprocess.Popen(
            [sys.executable, "-m", "frontend.worker_main", *arguments],
            stdin=subprocess.DEVNULL,
            pass_fds=(listener,),
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - one call of prctl, which takes no lock
        )
        return _Worker(number, process, time.monotonic())

    def _look_after(self, worker: _Worker) -> _Worker:
        now_s = time.monotonic()
        if worker.start_again_s:
            return self._start_again(worker) if now_s >= worker.start_again_s else worker
        status = worker.process.poll()
        if status is None:
            self._end_if_silent(worker, now_s)
            return worker
        self._forget(worker.number)
        worker.deaths = worker.deaths + 1 if now_s - worker.started_s < _STABLE_S else 1
        pause_s = _RESTART_PAUSES_S[min(worker.deaths, len(_RESTART_PAUSES_S)) - 1]
        log.error("worker_ended", worker=worker.number, status=status, starts_again_in_s=pause_s)
        worker.start_again_s = now_s + pause_s
        return worker if pause_s else self._start_again(worker)

    def _forget(self, number: int) -> None:
        self._workers.clear(number)
        try:
            retain_dead_worker_counters(self._workers, number)
        except OSError as error:  # a full disk: its successor's file takes the place of what it had counted
            log.error("counts_not_kept", worker=number, reason=error.strerror)

    def _start_again(self, worker: _Worker) -> _Worker:
        try:
            started = self._start(worker.number)
        except OSError as error:  # no memory, no processes left: that may pass
            log.error("worker_not_started", worker=worker.number, reason=error.strerror)
            worker.start_again_s = time.monotonic() + _RESTART_PAUSES_S[-1]
            return worker
        started.deaths = worker.deaths
        return started

    def _end_if_silent(self, worker: _Worker, now_s: float) -> None:
        beat_s = self._workers.last_beat_s(worker.number)
        limit_s = _SILENCE_LIMIT_S if beat_s else _START_LIMIT_S
        if now_s - max(beat_s, worker.started_s) > limit_s:
            log.error("worker_hangs", worker=worker.number)
            worker.process.kill()

    def _stop(self, workers: list[_Worker]) -> None:
        """Let them drain. A worker that has ended must not leave a socket behind in which connections would wait."""
        running = [worker.process for worker in workers]
        for listener in self._sockets:
            listener.close()
        deadline_s = time.monotonic() + self._settings.drain_timeout_s + _LAST_SECONDS_S
        passed_on = 0
        while any(process.poll() is None for process in running):
            if passed_on < self._signals:
                passed_on += 1
                _signal_all(running, signal.SIGTERM)
            if time.monotonic() > deadline_s:
                log.warning("workers_killed", reason="they did not end in time")
                _signal_all(running, signal.SIGKILL)
            self._sleep(_LOOK_S)

    def _sleep(self, limit_s: float) -> None:
        """Until a signal comes, at most so long."""
        readable, _, _ = select.select([self._wake_out], [], [], limit_s)
        if readable:
            self._wake_out.recv(4096)


def listening_sockets(host: str, port: int, count: int) -> list[socket.socket]:
    """As many sockets on one address. OSError when something else listens there."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Without SO_REUSEPORT: with it, a second front end on the same port would go unnoticed.
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


def _signal_all(processes: list[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    pass


def _end_with_parent() -> None:
    """In the child: get SIGTERM when the supervisor dies, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
