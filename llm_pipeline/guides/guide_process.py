"""The process of one guide, forked by the fork server: compiles the guide, reports the verdict, and makes its masks.

Whatever a guide costs is bounded here, by the kernel: CPU time by an interval timer whose SIGPROF ends the process,
memory by RLIMIT_AS. Native code can't be interrupted in another way. The parent reports how the process ended.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from llm_pipeline.guides.limits import MIB
from llm_pipeline.guides.mask_server import MaskLimits, MaskMaker, MaskServer
from llm_pipeline.guides.masks import GuideError
from llm_pipeline.guides.orders import CompileOrder, ForkServerSettings, Verdict, send_report
from llm_pipeline.protocol.messages import Guide
from llm_pipeline.runtime.subprocesses import end_with_parent

OUT_OF_MEMORY_STATUS = 3
_BACKLOG = 1024
_COMPILE_NICENESS = 5  # that of the CPU engine's threads
# Below them, so that masks take little from a step that is being computed.
_MASK_NICENESS = 15
_MASK_MEMORY_MIB = 128  # that masks may add to a compiled guide
# TensorRT-LLM compiles a guide again on a thread of its own, and a guide that is nested too deeply for that thread's
# stack ends the engine. glibc gives a thread the stack limit of its program, or 2 MiB if there is no limit.
_XGRAMMAR_STACK_BYTES = MIB
_PAGE_BYTES = resource.getpagesize()


class Compile(Protocol):
    """Compiles a guide: the method of a compiler, or llguidance's `validate` if no masks are made."""

    def __call__(self, guide: Guide) -> MaskMaker | None:
        """Raises GuideError. llguidance also raises ImportError if it is too old for the guide's type."""


def run_guide_process(
    order: CompileOrder, compile_guide: Compile, settings: ForkServerSettings, reports: socket.socket, parent_pid: int
) -> int:
    """Runs in the child after the fork. Returns the exit status."""
    end_with_parent()
    if os.getppid() != parent_pid:
        return 1
    base_bytes = address_space_bytes()
    _limit(resource.RLIMIT_AS, base_bytes + settings.memory_mib * MIB)
    if settings.compiler == "xgrammar":
        _limit(resource.RLIMIT_STACK, _XGRAMMAR_STACK_BYTES)
    signal.setitimer(signal.ITIMER_PROF, settings.compile_cpu_s)
    os.nice(_COMPILE_NICENESS)
    try:
        maker, error = try_compile(order.guide, compile_guide)
    except MemoryError:
        return OUT_OF_MEMORY_STATUS
    signal.setitimer(signal.ITIMER_PROF, 0)
    if error is None and order.address is not None:
        if maker is None:
            error = "This kind of guide is not supported by the installed llguidance."
        else:
            return _serve(order, order.address, maker, settings, reports, base_bytes)
    send_report(reports, Verdict(order.attempt, time.process_time(), error))
    return 0


def try_compile(guide: Guide, compile_guide: Compile) -> tuple[MaskMaker | None, str | None]:
    """Returns what makes the guide's masks, and the problem if the guide is invalid. Raises MemoryError.

    Neither, if no masks are made, or this llguidance is too old for the guide: its executor checks it itself.
    """
    try:
        maker = compile_guide(guide)
        if maker is not None:
            maker.masks((), lambda: False)  # the first mask of a guide takes the longest, and belongs to this limit
    except GuideError as failure:
        return None, str(failure)
    except (ImportError, AttributeError, TypeError):  # another version's API
        return None, None
    except MemoryError:
        raise
    except Exception as failure:  # noqa: BLE001 - a library's bug, caused by the guide
        return None, f"{type(failure).__name__} while it was compiled."
    return maker, None


def _serve(
    order: CompileOrder,
    address: str,
    maker: MaskMaker,
    settings: ForkServerSettings,
    reports: socket.socket,
    base_bytes: int,
) -> int:
    stop, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGTERM, lambda *_: None)  # wakes the server, which ends
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(address)
        listener.listen(_BACKLOG)
        used_bytes = address_space_bytes()
        _limit(resource.RLIMIT_AS, used_bytes + _MASK_MEMORY_MIB * MIB)
        send_report(reports, Verdict(order.attempt, time.process_time(), None, max(used_bytes - base_bytes, 0)))
        reports.close()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, _MASK_NICENESS)
        MaskServer(maker, listener, stop, MaskLimits(answer_cpu_s=settings.mask_cpu_s)).run()
    return 0


def address_space_bytes(pid: int | None = None) -> int:
    """Returns the size of a process's address space, this one's by default."""
    return _statm(pid)[0] * _PAGE_BYTES


def private_bytes(pid: int) -> int:
    """Returns the resident memory of a process that is not part of a file; 0 if it has ended."""
    with suppress(OSError, IndexError):
        _, resident, shared, *_ = _statm(pid)
        return (resident - shared) * _PAGE_BYTES
    return 0


def cpu_s_of(pid: int) -> float:
    """Returns the CPU time that a process has used; 0 if it has ended."""
    clock = (~pid << 3) | 2  # MAKE_PROCESS_CPUCLOCK and CPUCLOCK_SCHED of the kernel's posix-timers.h
    with suppress(OSError):
        return time.clock_gettime(clock)
    return 0.0


def _statm(pid: int | None = None) -> list[int]:
    return [int(value) for value in Path(f"/proc/{pid or 'self'}/statm").read_text(encoding="ascii").split()]


def _limit(kind: int, limit_bytes: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        limit_bytes = min(limit_bytes, hard)
    resource.setrlimit(kind, (limit_bytes, hard))
