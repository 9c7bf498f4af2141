"""Judges from responses and iterations whether the engine is alive, hangs, or fails every request."""

from __future__ import annotations

import time
from collections.abc import Sequence

from llm_pipeline.executors.tensorrt_llm.engine import EngineResponse, FailureKind

MAX_FAILED_ROUNDS = 8  # assumption: more than one client's bad luck; a warm-up probe that succeeds resets the count
_GUIDE_EXCUSE_S = 1.0  # the errors of one step may arrive in several rounds


class EngineFatalError(Exception):
    """The engine is dead; the message contains the reason."""


class EngineHealth:
    """The progress of one engine: after `silence_s` without any it is silent, and after `hang_s` it hangs; 0 is never.

    A step with a very long prompt may take longer than `silence_s`: what is put off until then would have waited for
    the end of the step anyway. `is_silent` may be called from any thread.
    """

    def __init__(self, hang_s: float, silence_s: float) -> None:
        self._hang_s = hang_s
        self._silence_s = silence_s
        self._failed_rounds = 0
        self._excused_until = 0.0  # monotonic
        self._progress_at = time.monotonic()

    def on_progress(self) -> None:
        """Records a response, an iteration, or the first request of an idle engine, which has neither."""
        self._progress_at = time.monotonic()

    def is_silent(self) -> bool:
        """Whether the engine has made no progress for `silence_s`; it makes none without requests."""
        return time.monotonic() - self._progress_at > self._silence_s

    def check_hang(self, *, is_busy: bool) -> None:
        """Raises EngineFatalError if the engine has work, and has made no progress for `hang_s`."""
        if is_busy and self._hang_s and time.monotonic() - self._progress_at > self._hang_s:
            raise EngineFatalError(f"no response and no iteration for {self._hang_s:.0f} s while requests are running")

    def on_round(self, responses: Sequence[EngineResponse], *, may_be_a_guides_fault: bool) -> None:
        """Raises EngineFatalError if every request fails: upstream itself goes on after each failed step.

        A guide that upstream can't compile fails the step of all requests, and the engine is as healthy as before: its
        sender could otherwise restart the engine at will. `may_be_a_guides_fault`: a guided request without a token,
        whose guide the step has compiled, is among those that fail.
        """
        now = time.monotonic()
        if any(response.error is None for response in responses):
            self._failed_rounds = 0
        elif any(response.failure is FailureKind.UNKNOWN and not response.must_cancel for response in responses):
            if may_be_a_guides_fault:
                self._excused_until = now + _GUIDE_EXCUSE_S
            self._failed_rounds += now >= self._excused_until
        if self._failed_rounds >= MAX_FAILED_ROUNDS:
            raise EngineFatalError(f"all responses of the last {self._failed_rounds} rounds were errors, see above")
