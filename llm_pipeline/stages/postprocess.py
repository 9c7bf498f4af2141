"""postprocess: turns tokens into text, with one TextAssembler per live request.

When a stop string matches, the request is cancelled in decode (`cancel_in_decode`). Chunks that decode sends after that
are dropped. So are those after an internal error, until decode has ended the request; only then is the error sent: an
ensemble that responds with an error while decode still sends prevents Triton from shutting down (measured).
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
MAX_LIVE = 16_384
"""Limit of requests with state. Only a decode that died leaves requests without an ending, and those are the least
recently used ones, which are dropped first."""


class _LiveRequest:
    """One request between its first and its final chunk. `assembler` is None if its first chunk was never seen."""

    __slots__ = ("assembler", "error", "next_index")

    def __init__(self, assembler: TextAssembler | None) -> None:
        self.assembler = assembler
        self.error: PipelineError | None = None
        self.next_index = 0

    @property
    def is_finished(self) -> bool:
        """Whether the client has its finish reason: after that nothing more is sent, not even an error."""
        return self.assembler is not None and self.assembler.is_finished

    @property
    def completion_tokens(self) -> int:
        return 0 if self.assembler is None else self.assembler.completion_tokens


class PostprocessStage:
    """Handles the chunks of all requests, one after the other. Not thread-safe.

    The chunks of one request must arrive in order: an index out of order is an internal error. `cancel_in_decode` is
    called with the key of a request that ends before its final chunk.
    """

    def __init__(
        self, tokenizer: Tokenizer, cancel_in_decode: Callable[[str], None], *, max_live: int = MAX_LIVE
    ) -> None:
        self._tokenizer = tokenizer
        self._cancel_in_decode = cancel_in_decode
        self._max_live = max_live
        self._live: OrderedDict[str, _LiveRequest] = OrderedDict()

    def handle(self, chunk: TokenChunk) -> TextChunk:
        """Returns the text to send now; `is_silent` without any. Raises PipelineError if that ends the request."""
        if chunk.index == 0 and chunk.error is not None:
            raise chunk.error  # it never started; state under its key, if any, belongs to another request
        live = self._find(chunk)
        piece = None
        if chunk.error is not None:
            live.error = live.error or chunk.error
        else:
            piece = self._assemble(live, chunk)
        if chunk.is_final:
            self._live.pop(chunk.key, None)
            if live.error is not None and not live.is_finished:
                raise live.error
        return piece or TextChunk("", live.completion_tokens)

    def _find(self, chunk: TokenChunk) -> _LiveRequest:
        live = self._live.get(chunk.key)
        if live is not None:
            self._live.move_to_end(chunk.key)
            return live
        live = _LiveRequest(None if chunk.text_options is None else self._start(chunk.text_options))
        self._live[chunk.key] = live
        if len(self._live) > self._max_live:
            self._live.popitem(last=False)
        return live

    def _start(self, options: TextOptions) -> TextAssembler:
        return TextAssembler(self._tokenizer.token_table, options, self._tokenizer.token_strings)

    def _assemble(self, live: _LiveRequest, chunk: TokenChunk) -> TextChunk | None:
        if live.error is not None or live.is_finished:
            return None
        if live.assembler is None or chunk.index != live.next_index:
            # This process was restarted, or chunks arrived out of order: no text is better than wrong text.
            _log.error("chunk %d of a request arrived instead of chunk %d", chunk.index, live.next_index)
            self._fail(live, chunk)
            return None
        live.next_index += 1
        try:
            piece = live.assembler.push(chunk)
        except Exception:  # noqa: BLE001 - a bug here ends this request, not the others of the batch
            _log.exception("the text of a chunk could not be assembled")
            self._fail(live, chunk)
            return None
        if piece is not None and piece.finish_reason is not None and not chunk.is_final:
            self._cancel_in_decode(chunk.key)
        return piece

    def _fail(self, live: _LiveRequest, chunk: TokenChunk) -> None:
        live.error = internal_error()
        if not chunk.is_final:
            self._cancel_in_decode(chunk.key)
