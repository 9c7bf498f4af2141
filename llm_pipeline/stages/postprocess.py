"""postprocess: turns tokens into text, with one TextAssembler per live request.

Tokens arrive in chunks of one request, or in bursts with the new tokens of all requests of a client.

When a stop string matches, the request is cancelled in decode (`cancel_in_decode`). Tokens that decode sends after that
are dropped. So are those after an internal error, until decode has ended the request; only then is the error sent: an
ensemble that responds with an error while decode still sends prevents Triton from shutting down (measured).
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeAlias

from llm_pipeline.protocol.channel import StreamEnd, StreamStart, TokenBurst
from llm_pipeline.protocol.channel_json import TextColumns
from llm_pipeline.protocol.errors import PipelineError, internal_error
from llm_pipeline.protocol.messages import FinishReason, TextChunk, TextOptions, TokenChunk
from llm_pipeline.text.assembler import TextAssembler
from llm_pipeline.text.logprobs import NO_LOGPROBS, TokenLogprobs
from llm_pipeline.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
MAX_LIVE = 16_384
"""Limit of requests with state, one for chunks and one for bursts. Only a decode that died leaves requests without an
ending, and those are the least recently used ones, which are dropped first."""


class _LiveRequest:
    """One request from its start until decode has ended it. `assembler` is None if its first chunk was never seen."""

    __slots__ = ("assembler", "error", "key", "next_index")

    def __init__(self, key: str, assembler: TextAssembler | None) -> None:
        self.key = key
        self.assembler = assembler
        self.error: PipelineError | None = None
        self.next_index = 0  # of its chunks; the client checks that bursts are in order

    @property
    def is_finished(self) -> bool:
        """Whether the client has its finish reason: after that nothing more is sent, not even an error."""
        return self.assembler is not None and self.assembler.is_finished

    @property
    def completion_tokens(self) -> int:
        return 0 if self.assembler is None else self.assembler.completion_tokens

    def push_plain(self, token_ids: Sequence[int]) -> str | None:
        """As TextAssembler.push_plain; also None if the request has failed."""
        if self.error is not None or self.assembler is None:
            return None
        return self.assembler.push_plain(token_ids)


_Streams: TypeAlias = "dict[int, _LiveRequest | None]"
"""The live requests of one client by slot. None: the request was ended here, because its start was never seen."""


class PostprocessStage:
    """Handles the tokens of all requests, one message after the other. Not thread-safe.

    The messages of one request must arrive in order: a chunk's index out of order is an internal error.
    `cancel_in_decode` is called with the key of a request that ends before decode has ended it.
    """

    def __init__(
        self, tokenizer: Tokenizer, cancel_in_decode: Callable[[str], None], *, max_live: int = MAX_LIVE
    ) -> None:
        self._tokenizer = tokenizer
        self._cancel_in_decode = cancel_in_decode
        self._max_live = max_live
        self._live: OrderedDict[str, _LiveRequest] = OrderedDict()
        self._channels: OrderedDict[str, _Streams] = OrderedDict()  # by client id

    # --- Chunks ------------------------------------------------------------------------------------------------------

    def handle(self, chunk: TokenChunk) -> TextChunk:
        """Returns the text to send now; `is_silent` without any. Raises PipelineError if that ends the request."""
        if chunk.index == 0 and chunk.error is not None:
            raise chunk.error  # it never started; state under its key, if any, belongs to another request
        live = self._find(chunk)
        piece = None
        if chunk.error is not None:
            live.error = live.error or chunk.error
        elif self._is_expected(live, chunk):
            piece = self._push(live, chunk.token_ids, chunk.finish_reason, chunk, is_final=chunk.is_final)
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
        live = _LiveRequest(chunk.key, None if chunk.text_options is None else self._assembler(chunk.text_options))
        self._live[chunk.key] = live
        if len(self._live) > self._max_live:
            self._live.popitem(last=False)
        return live

    def _is_expected(self, live: _LiveRequest, chunk: TokenChunk) -> bool:
        """Counts a chunk. Returns False if it is to be dropped; one that is out of order fails its request."""
        if live.error is not None or live.is_finished:
            return False
        if live.assembler is None or chunk.index != live.next_index:
            # This process was restarted, or chunks arrived out of order: no text is better than wrong text.
            _log.error("chunk %d of a request arrived instead of chunk %d", chunk.index, live.next_index)
            self._fail(live, is_final=chunk.is_final)
            return False
        live.next_index += 1
        return True

    # --- Bursts ------------------------------------------------------------------------------------------------------

    def handle_burst(self, burst: TokenBurst) -> TextColumns:
        """Returns the text to send now, and the requests that have ended.

        A request that fails leaves the others alone. Tokens of a request whose start was never seen, because this
        process has been restarted, end it with an error. Its key is unknown here, so the client has to cancel it.
        """
        streams = self._channels.setdefault(burst.client_id, {})
        self._channels.move_to_end(burst.client_id)
        columns = TextColumns(burst.report)
        for start in burst.starts:
            streams[start.slot] = self._started(start)
        self._add_tokens(burst, streams, columns)
        for end in burst.ends:
            self._add_end(end, streams, columns)
        self._drop_channels(burst.client_id)
        return columns

    def _started(self, start: StreamStart) -> _LiveRequest:
        live = _LiveRequest(start.key, None)
        try:
            live.assembler = self._assembler(start.text_options)
        except Exception:  # noqa: BLE001 - as in _push
            _log.exception("the text of a request could not be started")
            self._fail(live, is_final=False)
        return live

    def _add_tokens(self, burst: TokenBurst, streams: _Streams, columns: TextColumns) -> None:
        reasons = {end.slot: end.finish_reason for end in burst.ends}
        logprobs: dict[int, TokenLogprobs] = {entry.slot: entry for entry in burst.logprobs}
        unknown: list[int] = []
        position = 0
        for slot, count in zip(burst.slots, burst.counts, strict=True):
            token_ids = burst.token_ids[position : position + count]
            position += count
            live = streams.get(slot)
            if live is None:
                unknown.append(slot)
                continue
            is_final = slot in reasons
            text = None if is_final else live.push_plain(token_ids)
            if text is None:
                values = logprobs.pop(slot, NO_LOGPROBS)
                piece = self._push(live, token_ids, reasons.get(slot), values, is_final=is_final)
                if piece is not None:
                    columns.add(slot, piece)
            elif text:
                columns.add_text(slot, text, live.completion_tokens)
        self._refuse([slot for slot in unknown if slot not in streams], streams, columns)
        for slot, values in logprobs.items():  # what is left has no tokens: the logprobs of prompts
            live = streams.get(slot)
            if live is not None and (piece := self._push(live, (), None, values, is_final=slot in reasons)) is not None:
                columns.add(slot, piece)

    def _refuse(self, slots: Sequence[int], streams: _Streams, columns: TextColumns) -> None:
        """Ends requests whose start was never seen."""
        if slots:
            _log.error("tokens arrived without the start of their request (%d requests)", len(slots))
        for slot in slots:
            streams[slot] = None
            columns.end(slot, internal_error())

    def _add_end(self, end: StreamEnd, streams: _Streams, columns: TextColumns) -> None:
        slot = end.slot
        if slot not in streams:
            self._add_end_without_start(end, columns)
            return
        live = streams.pop(slot)
        if live is None:
            return
        live.error = live.error or end.error
        # Does nothing if the request's tokens are in this burst, too: the finish reason was pushed with them.
        piece = self._push(live, (), end.finish_reason, NO_LOGPROBS, is_final=True)
        if piece is not None:
            columns.add(slot, piece)
        columns.end(slot, None if live.is_finished else live.error)

    def _add_end_without_start(self, end: StreamEnd, columns: TextColumns) -> None:
        """Adds the end of a request that was refused or cancelled before it generated a token."""
        if end.finish_reason is FinishReason.CANCELLED:
            columns.add(end.slot, TextChunk("", 0, finish_reason=FinishReason.CANCELLED))
            columns.end(end.slot, None)
        else:  # without an error of its own, the request had tokens once, before this process was restarted
            columns.end(end.slot, end.error or internal_error())

    def _drop_channels(self, client_id: str) -> None:
        """Drops the state of a client without live requests, and the oldest requests above the limit."""
        if not self._channels[client_id]:
            del self._channels[client_id]
        excess = sum(map(len, self._channels.values())) - self._max_live
        while excess > 0:
            oldest_id, streams = next(iter(self._channels.items()))
            del streams[next(iter(streams))]
            excess -= 1
            if not streams:
                del self._channels[oldest_id]

    # --- Both --------------------------------------------------------------------------------------------------------

    def _assembler(self, options: TextOptions) -> TextAssembler:
        return TextAssembler(self._tokenizer.token_table, options, self._tokenizer.token_strings)

    def _push(
        self,
        live: _LiveRequest,
        token_ids: Sequence[int],
        reason: FinishReason | None,
        logprobs: TokenLogprobs,
        *,
        is_final: bool,
    ) -> TextChunk | None:
        """Returns the text to send now, if any. `is_final`: decode has ended the request."""
        if live.assembler is None or live.error is not None or live.is_finished:
            return None
        try:
            piece = live.assembler.push_tokens(token_ids, reason, logprobs)
        except Exception:  # noqa: BLE001 - a bug here ends this request, not the others of the batch
            _log.exception("the text of a request could not be assembled")
            self._fail(live, is_final=is_final)
            return None
        if piece is not None and piece.finish_reason is not None and not is_final:
            self._cancel_in_decode(live.key)
        return piece

    def _fail(self, live: _LiveRequest, *, is_final: bool) -> None:
        live.error = internal_error()
        if not is_final:
            self._cancel_in_decode(live.key)
