"""Scans the tokens of requests that do not stream, and that have a response of their own, for stop strings.

Such a request is sent as one chunk at its end, so that its client gets one response (docs/decisions/0005). Postprocess,
which finds the stop strings of streams, would see the text too late to end the generation early. It finds the same
match again when it makes the text.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from queue import SimpleQueue
from typing import TypeAlias

from llm_pipeline.protocol.messages import TextOptions, TokenChunk
from llm_pipeline.text.assembler import TextAssembler
from llm_pipeline.text.detokenizer import TokenTable

_log = logging.getLogger(__name__)

_Queue: TypeAlias = "SimpleQueue[tuple[StopStringScan, Sequence[int]] | None]"


class StopStringScan:
    """The scan of one request. `scan` only enqueues; the scanner's thread does the work."""

    __slots__ = ("_assembler", "_queue", "number")

    def __init__(self, table: TokenTable, number: int, options: TextOptions, queue: _Queue) -> None:
        self.number = number
        plain = replace(
            options,
            num_logprobs=None,
            return_logprob_values=False,
            echo_ids=None,
            echo_text=None,
            prompt_token_ids=None,
        )
        self._assembler = TextAssembler(table, plain)
        self._queue = queue

    def scan(self, token_ids: Sequence[int]) -> None:
        """Enqueues the request's next tokens."""
        self._queue.put((self, token_ids))

    def finds_stop(self, token_ids: Sequence[int]) -> bool:
        """Whether the request's next tokens complete one of its stop strings. For the scanner's thread."""
        return self._assembler.push(TokenChunk("", 0, tuple(token_ids))) is not None


class StopStringScanner:
    """Scans tokens on a background thread so that the engine thread never blocks."""

    def __init__(self, table: TokenTable) -> None:
        self._table = table
        self._on_stop: Callable[[int], None] = lambda number: None
        self._queue: _Queue = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="decode-stop-string-scanner", daemon=True)

    def start(self, on_stop: Callable[[int], None]) -> None:
        """Starts the thread, which calls `on_stop` with the number of each request that has completed a stop string."""
        self._on_stop = on_stop
        self._thread.start()

    def create_scan(self, number: int, options: TextOptions) -> StopStringScan | None:
        """Returns a scan, or None for a request that streams or has no stop strings."""
        return (
            StopStringScan(self._table, number, options, self._queue) if options.stop and not options.stream else None
        )

    def close(self) -> None:
        """Ends the thread after the tokens that are already enqueued."""
        self._queue.put(None)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            scan, token_ids = work
            try:
                if scan.finds_stop(token_ids):
                    self._on_stop(scan.number)
            except Exception:  # noqa: BLE001 - the request goes on to its end, where postprocess cuts its text
                _log.exception("a scan for stop strings failed")
