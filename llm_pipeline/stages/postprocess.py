"""postprocess: from tokens to text, with one TextAssembler for each live request.

A stop string found in the text ends the request in decode too: `stop_in_decode` tells it. What decode sends after that
is swallowed, and so is everything after a fault of our own, until decode has confirmed its end. Only then is an error
sent: an ensemble that answers with an error while decode still sends keeps Triton from shutting down (measured).
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

from llm_pipeline.protocol.errors import PipelineError, internal_error
from llm_pipeline.protocol.messages import TextChunk, TextOptions, TokenChunk
from llm_pipeline.text.assembler import TextAssembler
from llm_pipeline.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
# Requests whose decode died never send their end. They are the least recently used ones, and go first.
_MAX_LIVE = 16_384


class _Live:
    """One request between its first chunk and its last. `assembler` is None when its first chunk was never seen."""

    __slots__ = ("assembler", "error", "next_index")

    def __init__(self, assembler: TextAssembler | None) -> None:
        self.assembler = assembler
        self.error: PipelineError | None = None
        self.next_index = 0

    @property
    def is_answered(self) -> bool:
        """Whether the client has its finish reason: after that, nothing more is told, not even an error."""
        return self.assembler is not None and self.assembler.is_finished

    @property
    def completion_tokens(self) -> int:
        return 0 if self.assembler is None else self.assembler.completion_tokens


class PostprocessStage:
    """See the module's docstring. Chunks of one request must come in order; an index out of order is a fault."""

    def __init__(self, tokenizer: Tokenizer, stop_in_decode: Callable[[str], None]) -> None:
        self._tokenizer = tokenizer
        self._stop_in_decode = stop_in_decode
        self._live: OrderedDict[str, _Live] = OrderedDict()

    @property
    def live_count(self) -> int:
        return len(self._live)

    def handle(self, chunk: TokenChunk) -> TextChunk:
        """What to tell the client now; `is_silent` if nothing. PipelineError when the request ends with one."""
        if chunk.index == 0 and chunk.error is not None:
            raise chunk.error  # it never began; state under its key, if any, is that of another request
        live = self._find(chunk)
        piece = None
        if chunk.error is not None:
            live.error = live.error or chunk.error
        else:
            piece = self._assemble(live, chunk)
        if chunk.is_final:
            self._live.pop(chunk.key, None)
            if live.error is not None and not live.is_answered:
                raise live.error
        return piece or TextChunk("", live.completion_tokens)

    def _find(self, chunk: TokenChunk) -> _Live:
        live = self._live.get(chunk.key)
        if live is not None:
            self._live.move_to_end(chunk.key)
            return live
        live = _Live(None if chunk.text_options is None else self._start(chunk.text_options))
        self._live[chunk.key] = live
        if len(self._live) > _MAX_LIVE:
            self._live.popitem(last=False)
        return live

    def _start(self, options: TextOptions) -> TextAssembler:
        return TextAssembler(self._tokenizer.token_table, options, self._tokenizer.token_strings)

    def _assemble(self, live: _Live, chunk: TokenChunk) -> TextChunk | None:
        if live.error is not None or live.is_answered:
            return None
        if live.assembler is None or chunk.index != live.next_index:
            # This process was restarted, or chunks came out of order: better no text than wrong text.
            _log.error("chunk %d of a request came where %d was due", chunk.index, live.next_index)
            self._fail(live, chunk)
            return None
        live.next_index += 1
        try:
            piece = live.assembler.push(chunk)
        except Exception:  # noqa: BLE001 - a fault here ends this request, not the other requests of the batch
            _log.exception("a chunk could not be turned into text")
            self._fail(live, chunk)
            return None
        if piece is not None and piece.finish_reason is not None and not chunk.is_final:
            self._stop_in_decode(chunk.key)
        return piece

    def _fail(self, live: _Live, chunk: TokenChunk) -> None:
        live.error = internal_error()
        if not chunk.is_final:
            self._stop_in_decode(chunk.key)
