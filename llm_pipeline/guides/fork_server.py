"""The fork server: `python -m llm_pipeline.guides.fork_server ORDERS_FD REPORTS_FD SETTINGS_JSON`.

Loads the tokenizer once, and forks a process for each guide, which takes 1 to 2 ms. It has a single thread, so that a
fork copies no lock that another thread holds, and never computes anything about a guide itself. It ends when the
service closes its socket; its children end with it.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import resource
import select
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llm_pipeline.guides.compilers.llguidance_compiler import GuideCompiler, validate
from llm_pipeline.guides.compilers.xgrammar_compiler import XgrammarCompiler
from llm_pipeline.guides.guide_process import Compile, private_bytes, run_guide_process
from llm_pipeline.guides.limits import MIB
from llm_pipeline.guides.orders import (
    CompileOrder,
    DemoteOrder,
    ForkServerSettings,
    KillOrder,
    Order,
    ProcessEnded,
    ProcessStarted,
    ServerReady,
    StopOrder,
    send_report,
    take_orders,
)

# llguidance recurses to the depth of a guide. Only pages that are used take memory.
STACK_BYTES = 512 * MIB
_MEMORY_CHECK_S = 0.25
_PARENT_DEATH_S = 0.5
_LOWEST_PRIORITY = 19
_READ_BYTES = 1 << 18


@dataclass
class _Child:
    pid: int
    base_bytes: int  # of memory that it shares with this process


class ForkServer:
    """Carries out orders, and reports how the children end."""

    def __init__(
        self, orders: socket.socket, reports: socket.socket, settings: ForkServerSettings, compile_guide: Compile
    ) -> None:
        self._orders = orders
        self._reports = reports
        self._settings = settings
        self._compile = compile_guide
        self._children: dict[int, _Child] = {}  # by attempt, until they are reaped
        self._attempts: dict[int, int] = {}  # by pid
        self.is_stopped = False  # by the service
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # wakes `select`

    def run(self) -> None:
        """Runs until it is stopped or the service closes its socket."""
        received = bytearray()
        while not self.is_stopped:
            timeout_s = _MEMORY_CHECK_S if self._children else None
            readable, _, _ = select.select([self._orders, self._wake], [], [], timeout_s)
            if self._wake in readable:
                with suppress(BlockingIOError):
                    self._wake.recv(4096)
                self._reap()
            if self._orders in readable:
                data = self._orders.recv(_READ_BYTES)
                if not data:
                    return
                received += data
                for order in take_orders(received):
                    self._obey(order)
            if not readable:
                self._check_memory()

    def close(self) -> None:
        """Kills the children."""
        for child in self._children.values():
            os.kill(child.pid, signal.SIGKILL)

    def _obey(self, order: Order) -> None:
        if isinstance(order, StopOrder):
            self.is_stopped = True
            return
        if isinstance(order, CompileOrder):
            self._fork(order)
            return
        child = self._children.get(order.attempt)
        if child is None:  # it has ended
            return
        if isinstance(order, KillOrder):
            os.kill(child.pid, signal.SIGKILL)
        elif isinstance(order, DemoteOrder):
            with suppress(OSError):  # not allowed here
                if order.to_idle_class:
                    os.sched_setscheduler(child.pid, os.SCHED_IDLE, os.sched_param(0))
                else:
                    os.setpriority(os.PRIO_PROCESS, child.pid, _LOWEST_PRIORITY)

    def _fork(self, order: CompileOrder) -> None:
        server_pid = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:  # the limit of processes, or no memory: not the guide's fault
            send_report(self._reports, ProcessEnded(order.attempt, -signal.SIGTERM, 0.0))
            print(f"a guide's process could not be forked: {error}", file=sys.stderr)
            return
        if pid == 0:
            status = 1
            try:
                self._leave_to_child()
                status = run_guide_process(order, self._compile, self._settings, self._reports, server_pid)
            finally:
                os._exit(status)
        self._children[order.attempt] = _Child(pid, private_bytes(pid))
        self._attempts[pid] = order.attempt
        send_report(self._reports, ProcessStarted(order.attempt, pid))

    def _leave_to_child(self) -> None:
        """Closes what is the server's own. Messages of libraries may contain parts of a guide: they are dropped."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._orders.close()
        self._wake.close()
        self._woken.close()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.close(null)

    def _reap(self) -> None:
        while self._attempts:
            pid, wait_status, usage = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                return
            attempt = self._attempts.pop(pid)
            del self._children[attempt]
            status = os.waitstatus_to_exitcode(wait_status)
            send_report(self._reports, ProcessEnded(attempt, status, usage.ru_utime + usage.ru_stime))

    def _check_memory(self) -> None:
        """Ends the largest child if all of them together take too much memory."""
        used = {attempt: private_bytes(child.pid) - child.base_bytes for attempt, child in self._children.items()}
        if sum(used.values()) > self._settings.total_memory_mib * MIB:
            largest = max(used, key=lambda attempt: used[attempt])
            os.kill(self._children[largest].pid, signal.SIGKILL)


def load_compiler(settings: ForkServerSettings) -> Compile:
    """Returns the function that compiles guides. Raises ImportError without its library."""
    if settings.compiler == "xgrammar":
        return _xgrammar(settings)
    if settings.tokenizer_file is None:
        if importlib.util.find_spec("llguidance") is None:
            raise ImportError("llguidance")
        return validate
    compiler = GuideCompiler(Path(settings.tokenizer_file), vocab_size=settings.vocab_size, end_id=settings.end_ids[0])
    return compiler.compile


def _xgrammar(settings: ForkServerSettings) -> Compile:
    assert settings.tokenizer_file is not None
    compiler = XgrammarCompiler(
        Path(settings.tokenizer_file), vocab_size=settings.vocab_size, stop_token_ids=list(settings.end_ids)
    )
    return compiler.compile


def main(arguments: list[str]) -> int:
    _ensure_large_stack()
    parent_pid = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C in a terminal is for the server, which ends this process
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    orders, reports = (socket.socket(fileno=int(descriptor)) for descriptor in arguments[:2])
    settings = ForkServerSettings(**json.loads(arguments[2]))
    try:
        compile_guide = load_compiler(settings)
    except ImportError:
        send_report(reports, ServerReady(can_compile=False))
        return 0
    except Exception as error:  # noqa: BLE001 - the service reports it, whatever it is
        send_report(reports, ServerReady(problem=f"{type(error).__name__}: {error}"))
        return 1
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page that it visits
    server = ForkServer(orders, reports, settings, compile_guide)
    send_report(reports, ServerReady())
    with suppress(ConnectionError):  # the service is gone
        server.run()
    server.close()
    if settings.directory is not None and not server.is_stopped and _has_lost_parent(parent_pid):
        shutil.rmtree(settings.directory, ignore_errors=True)
    return 0


def _has_lost_parent(parent_pid: int) -> bool:
    """Whether the service's process is dead. Its sockets are closed a moment before its children notice."""
    deadline = time.monotonic() + _PARENT_DEATH_S
    while os.getppid() == parent_pid and time.monotonic() < deadline:
        time.sleep(0.01)
    return os.getppid() != parent_pid


def _ensure_large_stack() -> None:
    """Starts this program again with a larger stack: its size is fixed when a program starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    wanted = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_STACK, (wanted, hard))
        os.execv(sys.executable, [sys.executable, "-m", "llm_pipeline.guides.fork_server", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
