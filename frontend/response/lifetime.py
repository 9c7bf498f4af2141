"""The lifetime of a completion response: deadline, client disconnect, aborted writes, and cleanup at its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive

from frontend.generation.completion_run import CancelReason, CompletionRun
from frontend.observability.request_record import CLIENT_CLOSED_REQUEST, RequestRecord
from frontend.response.answer import Answer
from frontend.response.usage import token_counts
from llm_pipeline.protocol.errors import ERRORS, ErrorCode, PipelineError


@dataclass(frozen=True)
class ResponseOptions:
    """Options of one response. Times in seconds."""

    response_id: str
    created: int  # Unix time
    timeout_s: float  # remaining time of the request when its response begins
    keepalive_s: float  # without an event in a stream before a comment is sent

    def head(self, answer: Answer, object_type: str) -> dict[str, Any]:
        """The fields that a response and all chunks of a stream begin with."""
        return {"id": self.response_id, "object": object_type, "created": self.created, "model": answer.model}


class RequestLifetime:
    """Runs the choices of one request while its response is written.

    `on_close` is called once, when the response has ended for any reason.
    """

    def __init__(
        self, run: CompletionRun, record: RequestRecord, *, timeout_s: float, on_close: Callable[[], None]
    ) -> None:
        self._run = run
        self._record = record
        self._timeout_s = timeout_s
        self._on_close = on_close
        self._is_write_aborted = False
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def begin(self, receive: Receive) -> Iterator[None]:
        """Starts the run; the body of the `with` statement writes the response, in the current task.

        A deadline fails the run with PipelineError (504), and a disconnect abandons it. If writing is still blocked
        after the deadline plus the write grace, because the client does not read, the task is cancelled to abort it. On
        exit, what is still running is cancelled.
        """
        loop = asyncio.get_running_loop()
        watcher = asyncio.create_task(self._watch_for_disconnect(receive))
        self._timer = loop.call_later(self._timeout_s, self._deadline_passed, asyncio.current_task())
        self._run.start()
        try:
            yield
        except asyncio.CancelledError:
            if not self._is_write_aborted:
                raise
            self._record.outcome = ERRORS[ErrorCode.DEADLINE_EXCEEDED].status
        finally:
            watcher.cancel()
            if self._timer is not None:
                self._timer.cancel()
            self._close()

    async def _watch_for_disconnect(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._run.abandon()

    def _deadline_passed(self, response: asyncio.Task[Any] | None) -> None:
        grace_s = self._run.limits.write_grace_s
        self._timer = asyncio.get_running_loop().call_later(grace_s, self._abort_write, response)
        message = "The request exceeded its timeout. Lower max_tokens, or raise x-request-timeout-s if it is set."
        self._run.fail(PipelineError(ErrorCode.DEADLINE_EXCEEDED, message), CancelReason.DEADLINE)

    def _abort_write(self, response: asyncio.Task[Any] | None) -> None:
        self._is_write_aborted = True
        if response is not None:
            response.cancel()

    def _close(self) -> None:
        run, record = self._run, self._record
        if run.is_abandoned and not run.is_finished:
            record.outcome = CLIENT_CLOSED_REQUEST
        run.cancel(CancelReason.CLIENT_GONE)
        record.prompt_tokens, record.completion_tokens = token_counts(run.choices)
        record.finish_reasons = tuple(str(choice.finish_reason) for choice in run.choices if choice.finish_reason)
        self._on_close()
