"""Turns the tokens of one request into the text that its client gets: decoding, stop strings, counts and the ending.

It does not know stages or Triton. What it sends adds up to the same text however the tokens were split into chunks.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from types import MappingProxyType

from llm_pipeline.protocol.messages import FinishReason, TextChunk, TextOptions, TokenChunk
from llm_pipeline.text.detokenizer import TokenTable
from llm_pipeline.text.logprobs_builder import LogprobsBuilder
from llm_pipeline.text.prompt_echo import PromptEcho
from llm_pipeline.text.stop_strings import StopMatcher

RESERVE_TOKENS = 4
"""How near to max_tokens one character is kept in reserve.

The contract wants text in the last chunk of a length stop, but the last tokens may hold only part of a character (up to
3 of 4 bytes), and engines may end with an empty response. The reserve makes that chunk non-empty if any of the last
tokens had text. Tokens still come one by one, a character late.
"""


class TextAssembler:
    """The text of one request so far, from its first token to its finish reason.

    Chunks with an error are not for it: whoever calls it passes those on. `token_strings` is for log probs only.
    """

    def __init__(
        self, table: TokenTable, options: TextOptions, token_strings: Mapping[int, str] = MappingProxyType({})
    ) -> None:
        self._options = options
        self._detokenizer = table.start(
            skip_special_tokens=options.skip_special_tokens,
            context_ids=options.context_ids,
            is_text_start=options.is_text_start,
        )
        self._matcher = (
            StopMatcher(options.stop, includes_match=options.include_stop_str_in_output) if options.stop else None
        )
        self._shows_end_token = options.include_stop_str_in_output and not options.skip_special_tokens
        self._reserve_from = options.max_tokens - (0 if options.return_token_ids else RESERVE_TOKENS - 1)
        self._completion_tokens = 0
        self._unsent_text: list[str] = []
        self._unsent_ids: list[int] = []
        self._is_first = True  # no TextChunk was made yet
        self._is_finished = False
        echo = None
        if options.echo_ids is not None:
            echo = PromptEcho.of(table, options)
            self._keep(echo.text, options.echo_ids)
        asks = options.num_logprobs is not None or options.return_logprob_values
        self._teller = LogprobsBuilder(options, token_strings, echo) if asks else None

    @property
    def is_finished(self) -> bool:
        """Whether the last TextChunk was made; a stop string can finish a request before decode knows."""
        return self._is_finished

    @property
    def completion_tokens(self) -> int:
        """How many tokens there were so far; after a stop match, up to where it was complete."""
        return self._completion_tokens

    def push(self, chunk: TokenChunk) -> TextChunk | None:
        """The client's part of the next chunk, or None when there is nothing to tell yet, or nothing any more."""
        if self._is_finished:
            return None
        text, token_ids, reason = self._read(chunk)
        self._completion_tokens += len(token_ids)
        self._is_finished = reason is not None
        text, token_ids = self._release(text, token_ids)
        if reason is None and not text and not (token_ids and self._options.return_token_ids):
            return None
        tells_prompt = self._is_first or reason is not None
        self._is_first = False
        piece = TextChunk(
            text,
            self._completion_tokens,
            token_ids if self._options.return_token_ids else None,
            self._options.prompt_tokens if tells_prompt else None,
            reason,
        )
        return piece if self._teller is None else self._teller.tell(piece)

    def _read(self, chunk: TokenChunk) -> tuple[str, tuple[int, ...], FinishReason | None]:
        """The chunk's text that is safe to send, and its tokens and finish reason, cut after a stop match."""
        token_ids, reason = chunk.token_ids, chunk.finish_reason
        # Decode stops at an end token only, and hands it back last; stop strings don't see its text.
        end_ids = token_ids[-1:] if reason is FinishReason.STOP else ()
        pieces = self._detokenizer.feed(token_ids[:-1] if end_ids else token_ids)
        if reason is not None:
            pieces.append(self._detokenizer.finish())
        if self._matcher is None:
            text, completing_count = pieces[0] if len(pieces) == 1 else "".join(pieces), None
        else:
            text, completing_count = self._search(self._matcher, pieces)
            if completing_count is not None:
                token_ids, reason = token_ids[:completing_count], FinishReason.STOP
            elif reason is not None:
                text += self._matcher.flush()
        if end_ids and completing_count is None and self._shows(end_ids[0]):
            text += "".join(self._detokenizer.feed(end_ids))
        if self._teller is not None:
            self._teller.take(chunk, len(token_ids), pieces, is_cut=completing_count is not None)
        return text, token_ids, reason

    def _search(self, matcher: StopMatcher, pieces: list[str]) -> tuple[str, int | None]:
        """The text up to where a stop string may begin, and how many tokens it took to complete one, if one was."""
        free_count = self._options.min_tokens - self._completion_tokens
        if free_count <= 0:
            text, match_end = matcher.feed(pieces[0] if len(pieces) == 1 else "".join(pieces))
            return text, None if match_end is None else _completing_count(pieces, match_end)
        free, searched = pieces[:free_count], pieces[free_count:]
        text, match_end = matcher.feed("".join(searched))
        text = "".join((*free, text))
        return text, None if match_end is None else len(free) + _completing_count(searched, match_end)

    def _shows(self, end_id: int) -> bool:
        return self._shows_end_token or end_id in self._options.visible_stop_token_ids

    def _release(self, text: str, token_ids: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """What to send now of all that is unsent."""
        if self._is_finished:
            return "".join((*self._unsent_text, text)), (*self._unsent_ids, *token_ids)
        if not self._options.stream:
            self._keep(text, token_ids)
            return "", ()
        if self._completion_tokens < self._reserve_from:
            if self._unsent_text:  # the prompt
                text, token_ids = "".join((*self._unsent_text, text)), (*self._unsent_ids, *token_ids)
                self._unsent_text, self._unsent_ids = [], []
            return text, token_ids
        return self._release_near_limit(text, token_ids)

    def _release_near_limit(self, text: str, token_ids: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        if self._options.return_token_ids:  # ids are the client's text: the last of them wait for the finish reason
            self._keep(text, token_ids)
            return "", ()
        text = "".join((*self._unsent_text, text))
        self._unsent_text = [text[-1:]]
        return text[:-1], token_ids

    def _keep(self, text: str, token_ids: tuple[int, ...]) -> None:
        self._unsent_text.append(text)
        if self._options.return_token_ids:
            self._unsent_ids.extend(token_ids)


def _completing_count(pieces: list[str], match_end: int) -> int:
    """How many tokens, whose texts are `pieces`, it takes to complete `match_end` characters."""
    ends = accumulate(len(piece) for piece in pieces)
    return next(count for count, end in enumerate(ends, start=1) if end >= match_end)
