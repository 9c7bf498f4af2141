"""The limits of guides, in one place: how long, how large, and how many at once."""

from __future__ import annotations

from dataclasses import dataclass

from llm_pipeline.runtime.settings import PipelineSettings

MIB = 2**20


@dataclass(frozen=True)
class GuideLimits:
    """Limits of guides. Times are in seconds; counts of processes are for one decode.

    The defaults come from measurements (docs/decisions/0017): an ordinary guide compiles in 1 to 20 ms.
    """

    compile_cpu_s: float = 2.0  # of CPU time; more is an error of the guide
    mask_cpu_s: float = 1.0  # of CPU time for one answer of the guide's process (mask_server.py)
    memory_mib: int = 512  # of one guide, on top of the process that it is forked from
    total_memory_mib: int = 2048  # of all guides; beyond it, the largest one is ended
    wait_s: float = 30.0  # from a request's arrival until its guide is prepared

    fast_s: float = 0.05  # of CPU time; a compile that takes longer leaves its fast place
    fast_wall_s: float = 0.25  # the same on a machine that is too busy to give it that CPU time
    fast_places: int = 2
    slow_places: int = 4  # of these, a tenant has at most one
    idle_class_after_s: float = 1.0  # in a slow place; then the compile runs only on cores that nothing else needs
    # A tenant uses slow places only, for this long after one of its guides had to leave a fast place, and while it has
    # used more than this much CPU time lately.
    fast_pause_s: float = 10.0
    fast_budget_s: float = 0.2

    waiting: int = 1024  # requests that wait for a guide; more are refused
    waiting_of_tenant: int = 512
    processes: int = 256  # that make masks; further guides wait
    processes_of_tenant: int = 128
    idle_processes: int = 32  # kept for the next request with the same guide
    idle_memory_mib: int = 256
    error_s: float = 300.0  # a guide beyond a limit is refused without another try for this long
    verdicts: int = 1024  # remembered

    @classmethod
    def of(cls, settings: PipelineSettings) -> GuideLimits:
        """The limits under these settings."""
        total = settings.guide_memory_mib
        return cls(
            compile_cpu_s=settings.guide_compile_timeout_s,
            memory_mib=max(total // 4, 1),
            total_memory_mib=total,
        )
