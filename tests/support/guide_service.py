"""A guide service with the real fork server, driven by tests in a few words."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llm_pipeline.guides.limits import GuideLimits
from llm_pipeline.guides.masks import MaskSource
from llm_pipeline.guides.orders import CompilerName, ForkServerSettings
from llm_pipeline.guides.server_process import ForkServerProcess
from llm_pipeline.guides.service import GuideService
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import Guide

DEADLINE_S = 60.0


@dataclass
class Prepared:
    """The outcome of one `prepare`, once `wait` has returned."""

    ticket: int = 0
    address: str | None = None
    error: PipelineError | None = None
    calls: int = 0
    seconds: float = 0.0
    done: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> Prepared:
        assert self.done.wait(DEADLINE_S), "the guide was neither prepared nor refused"
        return self


class CreateService(Protocol):
    """Creates a service that makes masks, unless `makes_masks` is False or xgrammar compiles."""

    def __call__(
        self, limits: GuideLimits | None = None, *, makes_masks: bool = True, compiler: CompilerName = "llguidance"
    ) -> ServiceBench: ...


class ServiceBench:
    """The service, and the processes that it has started."""

    def __init__(
        self,
        limits: GuideLimits,
        *,
        tokenizer_file: Path | None,
        vocab_size: int,
        end_ids: Sequence[int],
        **options: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.servers: list[ForkServerProcess] = []
        options.setdefault("start_server", self._start_server)
        self.service = GuideService(
            limits, tokenizer_file=tokenizer_file, vocab_size=vocab_size, end_ids=end_ids, **options
        )

    def prepare(self, guide: Guide, tenant: str = "") -> Prepared:
        """Prepares a guide without waiting."""
        prepared = Prepared()

        def on_prepared(address: str | None, error: PipelineError | None) -> None:
            prepared.calls += 1
            prepared.address, prepared.error = address, error
            prepared.done.set()

        prepared.ticket = self.service.prepare(guide, tenant, on_prepared)
        return prepared

    def first_mask(self, prepared: Prepared) -> npt.NDArray[np.bool_]:
        """Asks the process of a prepared guide for the mask of the first token."""
        assert prepared.address is not None
        source = MaskSource(prepared.address, vocab_size=self.vocab_size)
        try:
            source.ask()
            first: npt.NDArray[np.bool_] = answer_of(source)[0]
            return first
        finally:
            source.close()

    def children(self) -> list[int]:
        """Pids of the processes of guides, of the newest fork server."""
        if not self.servers:
            return []
        pid = self.servers[-1].pid
        try:
            text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        except OSError:
            return []
        return [int(child) for child in text.split() if _is_running(int(child))]

    def close(self) -> None:
        self.service.close()

    def _start_server(self, settings: ForkServerSettings) -> ForkServerProcess:
        self.servers.append(ForkServerProcess(settings))
        return self.servers[-1]


def answer_of(source: MaskSource) -> npt.NDArray[np.bool_]:
    """Waits for the answer to a question."""
    while (masks := source.receive()) is None:
        assert select.select([source], [], [], DEADLINE_S)[0], "no answer"
    return masks


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
