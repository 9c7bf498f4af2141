"""The service that prepares guides, in decode's process: one thread with a selector, which never blocks its callers.

It keeps the fork server running. While that is down, guides that are under way end with a 503, new ones wait for its
restart, and if it can't start, they are refused; everything else works.
"""

from __future__ import annotations

import itertools
import logging
import select
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeAlias

from llm_pipeline.engine_files.manifest import TOKENIZER_NAME, EngineManifest
from llm_pipeline.guides import errors
from llm_pipeline.guides.limits import GuideLimits
from llm_pipeline.guides.orders import (
    CompilerName,
    ForkServerSettings,
    Order,
    ProcessEnded,
    ProcessStarted,
    Report,
    ServerReady,
    Verdict,
)
from llm_pipeline.guides.preparations import OnPrepared, Preparations
from llm_pipeline.guides.server_process import ForkServerProcess
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import Guide
from llm_pipeline.runtime.settings import PipelineSettings, capabilities_of
from llm_pipeline.runtime.subprocesses import RestartBackoff

_log = logging.getLogger(__name__)
_START_TIMEOUT_S = 60.0
_STABLE_S = 60.0
_JOIN_TIMEOUT_S = 10.0
_MAX_SLEEP_S = 5.0
RESTART_DELAYS_S = (0.1, 1.0, 5.0, 30.0)


@dataclass(frozen=True)
class _Prepare:
    ticket: int
    guide: Guide
    tenant: str
    on_prepared: OnPrepared


@dataclass(frozen=True)
class _Release:
    ticket: int


_Message: TypeAlias = _Prepare | _Release


class GuideService:
    """Prepares guides. Thread-safe. ForkServerSettings describes the arguments, and which of them make masks."""

    def __init__(
        self,
        limits: GuideLimits,
        *,
        compiler: CompilerName = "llguidance",
        tokenizer_file: Path | None = None,
        vocab_size: int = 0,
        end_ids: Sequence[int] = (),
        start_server: Callable[[ForkServerSettings], ForkServerProcess] = ForkServerProcess,
    ) -> None:
        self._compiler = compiler
        makes_masks = compiler == "llguidance" and tokenizer_file is not None
        # Mode 0700, so that only this user's processes can ask for masks.
        self._directory = Path(tempfile.mkdtemp(prefix="guides-")) if makes_masks else None
        self._settings = ForkServerSettings(
            compiler=compiler,
            tokenizer_file=None if tokenizer_file is None else str(tokenizer_file),
            vocab_size=vocab_size,
            end_ids=list(end_ids),
            compile_cpu_s=limits.compile_cpu_s,
            mask_cpu_s=limits.mask_cpu_s,
            memory_mib=limits.memory_mib,
            total_memory_mib=limits.total_memory_mib,
            directory=None if self._directory is None else str(self._directory),
        )
        self._start_server = start_server
        self._tickets = itertools.count(1)
        self._inbox: SimpleQueue[_Message] = SimpleQueue()
        self._closing = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        # The rest belongs to the thread.
        compiles_tags = makes_masks or compiler == "xgrammar"
        self._preparations = Preparations(limits, self._send, self._directory, compiles_tags=compiles_tags)
        self._server: ForkServerProcess | None = None
        self._started_at = 0.0
        self._is_ready = False
        self._can_compile = True  # False: the compiler is missing
        self._has_failed = False  # since it was ready
        self._restart_at = 0.0
        self._backoff = RestartBackoff(RESTART_DELAYS_S, stable_s=_STABLE_S)
        self._thread = threading.Thread(target=self._run, name="decode-guides", daemon=True)
        self._thread.start()

    def prepare(self, guide: Guide, tenant: str, on_prepared: OnPrepared) -> int:
        """Calls `on_prepared` from the service's thread, once, unless `release` comes first. Returns a ticket.

        The guide's process lives until `release`.
        """
        ticket = next(self._tickets)
        self._put(_Prepare(ticket, guide, tenant, on_prepared))
        return ticket

    def release(self, ticket: int) -> None:
        """Ends a request's use of its guide, or its wait; an `on_prepared` that is about to be called still is."""
        self._put(_Release(ticket))

    def close(self) -> None:
        """Ends all waits with an error, and all processes."""
        self._closing.set()
        self._notify()
        self._thread.join(_JOIN_TIMEOUT_S)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _put(self, message: _Message) -> None:
        self._inbox.put(message)
        self._notify()

    def _notify(self) -> None:
        with suppress(OSError):  # full: it is awake anyway; closed: nothing is waited for
            self._wake.send(b"x")

    # The thread

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._turn()
            except Exception:  # noqa: BLE001, PERF203 - a bug must not leave requests without an ending
                _log.exception("guides: a step failed; everything under way is given up")
                self._guarded(self._lose_server)
        self._guarded(self._end)

    def _turn(self) -> None:
        now = time.monotonic()
        if self._server is None and self._can_compile and now >= self._restart_at:
            self._start(now)
        self._read_inbox(now)
        if self._has_failed and not self._is_ready:
            self._preparations.refuse_all(errors.guides_unavailable())
        self._preparations.advance(now, can_compile=self._is_ready)
        self._wait()
        server = self._server
        if server is None:
            return
        server.flush()
        for report in server.receive():
            self._on_report(report)
        starts_too_long = not self._is_ready and time.monotonic() > self._started_at + _START_TIMEOUT_S
        if starts_too_long or not server.is_running():
            for report in server.receive():  # what it reported last
                self._on_report(report)
            self._lose_server()

    def _wait(self) -> None:
        """Waits for a message, a report, or the next thing to do."""
        now = time.monotonic()
        deadline = self._preparations.next_deadline()
        sleep_s = _MAX_SLEEP_S if deadline is None else min(deadline - now, _MAX_SLEEP_S)
        poll = select.poll()  # `select` has a limit of 1,024 descriptors
        poll.register(self._woken, select.POLLIN)
        if self._server is not None:
            poll.register(self._server.reports, select.POLLIN)
            wants_write = select.POLLOUT if self._server.has_unsent else 0
            poll.register(self._server.orders, select.POLLIN | wants_write)
        elif self._can_compile:
            sleep_s = min(sleep_s, self._restart_at - now)
        if self._inbox.empty():
            poll.poll(max(sleep_s, 0) * 1000)
        with suppress(BlockingIOError):
            self._woken.recv(4096)

    def _read_inbox(self, now: float) -> None:
        with suppress(Empty):
            while True:
                message = self._inbox.get_nowait()
                if isinstance(message, _Release):
                    self._preparations.release(message.ticket)
                elif self._can_compile:
                    self._preparations.prepare(
                        message.ticket, message.guide, message.tenant, self._guarded_callback(message), now
                    )
                else:
                    self._guarded_callback(message)(None, self._without_compiler())

    def _without_compiler(self) -> PipelineError | None:
        """The executor checks guides itself if llguidance makes no masks. Nothing else checks those for xgrammar."""
        is_optional = self._directory is None and self._compiler == "llguidance"
        return None if is_optional else errors.guides_unavailable()

    def _guarded_callback(self, message: _Prepare) -> OnPrepared:
        return lambda address, error: self._guarded(lambda: message.on_prepared(address, error))

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:  # noqa: BLE001 - a bug of one caller must not end the others' guides
            _log.exception("guides: a call failed")

    def _on_report(self, report: Report) -> None:
        now = time.monotonic()
        if isinstance(report, Verdict):
            self._preparations.on_verdict(report, now)
        elif isinstance(report, ProcessEnded):
            self._preparations.on_process_ended(report, now)
        elif isinstance(report, ProcessStarted):
            self._preparations.on_process_started(report)
        elif isinstance(report, ServerReady):
            self._on_ready(report)

    def _on_ready(self, report: ServerReady) -> None:
        if report.problem is not None:
            if not self._has_failed:  # logged once, not at each attempt
                _log.error("structured output is not available: %s", report.problem)
        elif report.can_compile:
            self._is_ready = True
            self._has_failed = False
        else:
            consequence = "guides are not checked before they reach the executor"
            if self._without_compiler() is not None:
                consequence = "structured output is not available"
            _log.warning("%s is missing; %s", self._compiler, consequence)
            self._can_compile = False
            self._preparations.refuse_all(self._without_compiler())

    def _start(self, now: float) -> None:
        try:
            self._server = self._start_server(self._settings)
            self._started_at = now
        except OSError as error:
            if not self._has_failed:
                _log.error("structured output is not available: its process can't be started: %s", error)
            self._has_failed = True
            self._restart_at = now + self._backoff.next_delay_s()

    def _send(self, order: Order) -> None:
        if self._server is not None:
            self._server.send(order)

    def _lose_server(self) -> None:
        server, self._server = self._server, None
        was_ready, self._is_ready = self._is_ready, False
        now = time.monotonic()
        self._restart_at = now + self._backoff.next_delay_s(now - self._started_at)
        status = None if server is None else server.close()
        if was_ready:
            _log.error("the process that prepares guides ended with status %s; restarting it", status)
        self._has_failed = self._has_failed or not was_ready
        self._preparations.on_server_lost()

    def _end(self) -> None:
        self._read_inbox(time.monotonic())
        self._preparations.refuse_all(errors.shutting_down())
        if self._server is not None:
            self._server.close()
        self._wake.close()
        self._woken.close()


def create_guide_service(settings: PipelineSettings, manifest: EngineManifest) -> GuideService | None:
    """Returns None if the executor has no guided decoding, or the model no end token, without which no guide ends."""
    if not capabilities_of(settings, manifest).guides or not manifest.tokens.eos:
        return None
    limits = GuideLimits.of(settings)
    is_xgrammars = settings.executor != "cpu" and settings.trtllm_guided_decoding == "xgrammar"
    if settings.executor != "cpu" and not is_xgrammars:  # TensorRT-LLM has llguidance of its own
        return GuideService(limits)
    return GuideService(
        limits,
        compiler="xgrammar" if is_xgrammars else "llguidance",
        tokenizer_file=settings.engine_dir / TOKENIZER_NAME,
        vocab_size=manifest.limits.vocab_size,
        end_ids=manifest.tokens.eos,
    )
