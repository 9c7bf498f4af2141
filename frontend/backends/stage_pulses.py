"""Checks whether the stages of one ensemble still work, past the queues of the ensemble and of the engine.

Triton's own readiness only says that a model is loaded: it stays true while the process of a stage hangs. A completion
would show more, but it waits behind other requests, so a busy engine could not be told from a hung one. A pulse is a
request to one stage alone, which the stage answers from its `execute` at once. decode's answer contains the time since
the engine's last step.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from frontend.backends.generator import NoRoomError, OnReport, ignore_report
from frontend.backends.grpc_channel import InferRequest, TritonChannel, infer_request, output_names
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.field_kinds import NamedArrays
from llm_pipeline.protocol.tensors import (
    DECODE_MODEL,
    POSTPROCESS_MODEL,
    PREPROCESS_MODEL,
    PulseAnswer,
    describe_arrays,
    empty_chunk_arrays,
    pulse_arrays,
    stage_model,
)

log = structlog.get_logger(__name__)

_MESSAGES: dict[str, Callable[[], NamedArrays]] = {
    PREPROCESS_MODEL: describe_arrays,
    DECODE_MODEL: pulse_arrays,
    POSTPROCESS_MODEL: empty_chunk_arrays,
}
_NOT_WORKING = {ErrorCode.ENGINE_UNAVAILABLE, ErrorCode.SERVICE_UNAVAILABLE}
_WAIT_S = 0.5  # for answers, in one check; a stage that takes longer is judged by the next checks


@dataclass(frozen=True)
class PulseLimits:
    """Limits in seconds: for the answer of a stage, and for a step of an engine with work."""

    answer_s: float = 5.0
    step_s: float = 6.0


DEFAULT_PULSE_LIMITS = PulseLimits()


@dataclass
class _Pulse:
    """A pulse under way. It is never cancelled: this Triton version does not always survive a cancelled call."""

    task: asyncio.Task[float | None]  # seconds since the engine's last step; None if the stage does not work
    sent_s: float  # monotonic


class StagePulses:
    """Sends pulses to the three stages of an ensemble, one at a time to each."""

    def __init__(
        self, channel: TritonChannel, ensemble: str, limits: PulseLimits, on_report: OnReport = ignore_report
    ) -> None:
        self._on_report = on_report
        self.is_engine_progressing = True
        self._channel = channel
        self._limits = limits
        self._requests: dict[str, InferRequest] = {
            stage: infer_request(stage_model(ensemble, stage), message(), "pulse")
            for stage, message in _MESSAGES.items()
        }
        self._under_way: dict[str, _Pulse] = {}
        self._silent: frozenset[str] = frozenset()

    async def have_answers(self) -> bool:
        """Whether every stage has answered within the limit. Waits up to half a second for answers."""
        for stage in self._requests:
            self._ensure_sent(stage)
        await asyncio.wait([pulse.task for pulse in self._under_way.values()], timeout=_WAIT_S)
        now_s = time.monotonic()
        silent = set()
        for stage, pulse in list(self._under_way.items()):
            if pulse.task.done():
                del self._under_way[stage]
                stalled_s = pulse.task.result()
                if stalled_s is None:
                    silent.add(stage)
                elif stage == DECODE_MODEL:
                    self._note_stall(stalled_s)
            elif now_s - pulse.sent_s > self._limits.answer_s:
                silent.add(stage)
        for stage in sorted(silent - self._silent):
            log.warning("stage_does_not_answer", stage=stage, limit_s=self._limits.answer_s)
        self._silent = frozenset(silent)
        return not silent

    def request_report(self) -> None:
        """Sends a pulse to decode alone, for the engine's numbers, unless one is under way. Does not wait."""
        pulse = self._under_way.get(DECODE_MODEL)
        if pulse is not None and pulse.task.done():
            del self._under_way[DECODE_MODEL]
        self._ensure_sent(DECODE_MODEL)

    def _ensure_sent(self, stage: str) -> None:
        if stage not in self._under_way:
            self._under_way[stage] = _Pulse(asyncio.create_task(self._send(self._requests[stage])), time.monotonic())

    def close(self) -> None:
        """Stops waiting for answers."""
        for pulse in self._under_way.values():
            pulse.task.cancel()

    def _note_stall(self, stalled_s: float) -> None:
        is_progressing = stalled_s <= self._limits.step_s
        if self.is_engine_progressing and not is_progressing:
            log.warning("engine_makes_no_steps", stalled_s=stalled_s, limit_s=self._limits.step_s)
        self.is_engine_progressing = is_progressing

    async def _send(self, request: InferRequest) -> float | None:
        """Returns the seconds since the engine's last step, 0 for other stages; None if the stage does not work.

        An error of the stage is an answer too, but not Triton's error that its process is not healthy.
        """
        stalled_s = 0.0
        try:
            async for response in self._channel.infer(request):
                if request is self._requests[DECODE_MODEL] and output_names(response):
                    answer = PulseAnswer.from_raw(response.raw_output_contents)
                    stalled_s = answer.stalled_s
                    self._on_report(answer.report)
        except PipelineError as error:
            if error.code in _NOT_WORKING and not isinstance(error, NoRoomError):
                return None
        except Exception:
            log.exception("pulse_failed")
        return stalled_s
