"""Assembles the text of one request from its tokens: decoding, stop strings, counts and the ending.

Independent of stages and Triton. The text chunks add up to the same text however the tokens were split into chunks.

There are two ways in, with the same result: `push_tokens` for any tokens, and `push_plain` for those whose text is only
looked up. Most tokens are such, and one process assembles up to some 200,000 of them per second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType

from llm_pipeline.protocol.messages import FinishReason, TextChunk, TextOptions, TokenChunk
from llm_pipeline.text.detokenizer import TokenTable
from llm_pipeline.text.logprobs import NO_LOGPROBS, LogprobsBuilder, TokenLogprobs
from llm_pipeline.text.prompt_echo import PromptEcho
from llm_pipeline.text.stop_strings import StopMatcher

RESERVE_TOKENS = 4
"""The number of tokens before max_tokens from which on one character is held in reserve.

The API promises text in the last chunk of a request that ends at max_tokens, but the last tokens may contain only part
of a character (up to 3 of 4 bytes), and engines may end with an empty response. With the reserve, that chunk has text
if any of the last tokens had. Tokens are still sent one by one, a character late.
"""


class TextAssembler:
    """The text of one request, from its first token to its finish reason.

    `token_strings` maps token ids to texts, and is used for logprobs only. `completion_tokens`, which only this class
    changes, is the number of tokens so far; after a stop match, up to the token that completed it.
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
        self.completion_tokens = 0
        self._unsent_text: list[str] = []
        self._unsent_ids: list[int] = []
        self._is_first = True  # no TextChunk has been returned yet
        self._is_finished = False
        echo = None
        if options.echo_ids is not None:
            echo = PromptEcho.of(table, options)
            self._unsent_text.append(echo.text)
        has_logprobs = options.num_logprobs is not None or options.return_logprob_values
        self._logprobs = LogprobsBuilder(options, token_strings, echo) if has_logprobs else None
        self._can_be_plain = not (options.stop or has_logprobs or options.return_token_ids)
        # Tokens can be plain while the total is below this. The first chunk of a stream can't: it has `prompt_tokens`.
        self._plain_below = 0 if options.stream or not self._can_be_plain else math.inf

    @property
    def is_finished(self) -> bool:
        """Whether the last TextChunk has been returned. A stop string can finish a request before decode ends it."""
        return self._is_finished

    def push(self, chunk: TokenChunk) -> TextChunk | None:
        """Adds the tokens of a chunk that has no error, like `push_tokens`."""
        return self.push_tokens(chunk.token_ids, chunk.finish_reason, chunk)

    def push_plain(self, token_ids: Sequence[int]) -> str | None:
        """Adds tokens if they are plain. Returns the text to send now, which may be empty.

        Returns None, without having added them, if they need `push_tokens`. Plain tokens make a chunk that is only text
        and a count, or none if the text is empty.
        """
        texts = self._detokenizer.plain_texts
        total = self.completion_tokens + len(token_ids)
        if texts is None or total >= self._plain_below:
            return None
        if len(token_ids) == 1:
            text = texts[token_ids[0]]
            if text is None:
                return None
        else:
            pieces = [texts[token_id] for token_id in token_ids]
            if None in pieces:
                return None
            text = "".join(pieces)  # type: ignore[arg-type]  # the line above checked it
        self.completion_tokens = total
        if self._options.stream:
            return text
        self._unsent_text.append(text)
        return ""

    def push_tokens(
        self,
        token_ids: Sequence[int],
        finish_reason: FinishReason | None = None,
        logprobs: TokenLogprobs = NO_LOGPROBS,
    ) -> TextChunk | None:
        """Adds tokens, and ends the request if there is a finish reason.

        With STOP, the last token is the stop token that the engine ended with. Returns the text to send now, or None;
        always None after the finish reason.
        """
        if self._is_finished:
            return None
        text, sent_ids, reason = self._read(tuple(token_ids), finish_reason, logprobs)
        self.completion_tokens += len(sent_ids)
        self._is_finished = reason is not None
        text, sent_ids = self._release(text, sent_ids)
        if reason is None and not text and not (sent_ids and self._options.return_token_ids):
            return None
        has_prompt_tokens = self._is_first or reason is not None
        prompt_token_ids = self._options.prompt_token_ids if self._is_first else None
        self._is_first = False
        self._plain_below = self._reserve_from if self._can_be_plain and reason is None else 0
        piece = TextChunk(
            text,
            self.completion_tokens,
            sent_ids if self._options.return_token_ids else None,
            self._options.prompt_tokens if has_prompt_tokens else None,
            reason,
            prompt_token_ids=prompt_token_ids,
        )
        return piece if self._logprobs is None else self._logprobs.attach(piece)

    def _read(
        self, token_ids: tuple[int, ...], reason: FinishReason | None, logprobs: TokenLogprobs
    ) -> tuple[str, tuple[int, ...], FinishReason | None]:
        """Returns the text that is safe to send, the tokens and the finish reason, cut after a stop match."""
        # The engine ends with STOP at a stop token id only, which is the last token; stop strings don't match its text.
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
        if self._logprobs is not None:
            self._logprobs.add_tokens(token_ids, logprobs, pieces, is_cut=completing_count is not None)
        return text, token_ids, reason

    def _search(self, matcher: StopMatcher, pieces: list[str]) -> tuple[str, int | None]:
        """Returns the text up to a possible stop string, and the number of tokens that completed one, or None."""
        free_count = self._options.min_tokens - self.completion_tokens
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
        """Returns the part of the unsent text and token ids that is to be sent now."""
        if self._is_finished:
            return "".join((*self._unsent_text, text)), (*self._unsent_ids, *token_ids)
        if not self._options.stream:
            self._keep(text, token_ids)
            return "", ()
        if self.completion_tokens < self._reserve_from:
            if self._unsent_text:  # the prompt
                text, token_ids = "".join((*self._unsent_text, text)), (*self._unsent_ids, *token_ids)
                self._unsent_text, self._unsent_ids = [], []
            return text, token_ids
        return self._release_near_limit(text, token_ids)

    def _release_near_limit(self, text: str, token_ids: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        if self._options.return_token_ids:  # ids serve as the text: the last of them wait for the finish reason
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
    """Returns the number of tokens, whose texts are `pieces`, that complete `match_end` characters."""
    ends = accumulate(len(piece) for piece in pieces)
    return next(count for count, end in enumerate(ends, start=1) if end >= match_end)
