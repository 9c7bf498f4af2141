"""Looks for stop strings in decode, for requests whose clients wait for the whole answer.

Nothing of such a request is sent before its end, so that its client gets one response (docs/decisions/0005), and
postprocess has nothing to find its stop strings in. It finds the same match again when it makes the text.
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

_Work: TypeAlias = "SimpleQueue[tuple[StopStringScan, Sequence[int]] | None]"


class StopStringScan:
    """The search in one request's tokens."""

    __slots__ = ("_assembler", "_work", "key")

    def __init__(self, table: TokenTable, key: str, options: TextOptions, work: _Work) -> None:
        self.key = key
        plain = replace(options, num_logprobs=None, return_logprob_values=False, echo_ids=None, echo_text=None)
        self._assembler = TextAssembler(table, plain)
        self._work = work

    def look(self, token_ids: Sequence[int]) -> None:
        """Look through the request's next tokens soon."""
        self._work.put((self, token_ids))

    def finds_stop(self, token_ids: Sequence[int]) -> bool:
        """Whether the request's next tokens complete one of its stop strings."""
        return self._assembler.push(TokenChunk(self.key, 0, tuple(token_ids))) is not None


class StopStringScanner:
    """Looks through tokens on a thread of its own: those who make tokens don't wait for it."""

    def __init__(self, table: TokenTable) -> None:
        self._table = table
        self._on_stop: Callable[[str], None] = lambda key: None
        self._work: _Work = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="decode-stop-watcher", daemon=True)

    def start(self, on_stop: Callable[[str], None]) -> None:
        """`on_stop` gets the key of each request that has completed a stop string, from the watcher's thread."""
        self._on_stop = on_stop
        self._thread.start()

    def watch(self, key: str, options: TextOptions) -> StopStringScan | None:
        """None for a request that has no stop strings, or whose chunks postprocess sees anyway."""
        return StopStringScan(self._table, key, options, self._work) if options.stop and not options.stream else None

    def close(self) -> None:
        self._work.put(None)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            watch, token_ids = work
            try:
                if watch.finds_stop(token_ids):
                    self._on_stop(watch.key)
            except Exception:  # noqa: BLE001 - the request goes on to its end, where postprocess cuts its text
                _log.exception("a stop string could not be looked for")
