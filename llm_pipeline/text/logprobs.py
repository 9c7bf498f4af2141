"""Builds the logprobs of one request: OpenAI's `logprobs` object next to the text, and plain numbers.

All values are natural logarithms of probabilities. A token is listed when its text is sent, so the pieces of a stream
add up to the whole object, and nothing is listed after a stop string.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import orjson

from llm_pipeline.protocol.messages import PromptLogprobs, RequestLogprobs, TextChunk, TextOptions, TopLogprobs
from llm_pipeline.text.prompt_echo import PromptEcho
from llm_pipeline.text.token_strings import TokenIdStrings

_NO_TOP: TopLogprobs = ((), ())


class TokenLogprobs(Protocol):
    """The logprobs of some tokens, as in RequestLogprobs. Chunks and bursts have them, too."""

    @property
    def logprobs(self) -> tuple[float | None, ...]: ...

    @property
    def top_logprobs(self) -> tuple[TopLogprobs, ...]: ...

    @property
    def prompt_logprobs(self) -> PromptLogprobs | None: ...


NO_LOGPROBS = RequestLogprobs()


class LogprobsBuilder:
    """Collects the logprobs of one request as its tokens are decoded, and attaches them to the text that is sent.

    Created only for requests that ask for logprobs. `token_strings` maps a token id to its text in the lists. `echo` is
    set if the prompt's text precedes the completion's.
    """

    def __init__(self, options: TextOptions, token_strings: Mapping[int, str], echo: PromptEcho | None) -> None:
        self._strings = TokenIdStrings() if options.return_tokens_as_token_ids else token_strings
        self._lists = None if options.num_logprobs is None else OpenAiLogprobs(self._strings)
        self._lists_ids = options.return_tokens_as_token_ids
        self._echo = echo  # until it is listed
        self._echo_ids = options.echo_ids or ()
        self._listed_prompt_tokens = 0  # that no chunk has been given
        self._values: list[float] | None = [] if options.return_logprob_values else None
        self._sum = 0.0
        self._sent_characters = 0
        self._is_cut = False

    def add_tokens(
        self, token_ids: Sequence[int], logprobs: TokenLogprobs, pieces: Sequence[str], *, is_cut: bool
    ) -> None:
        """Adds tokens, of which `pieces` are the texts.

        `is_cut` means that a stop string ends the text somewhere in these tokens. `logprobs` and `pieces` may then have
        more entries, for the tokens after it.
        """
        self._is_cut = is_cut
        count = len(token_ids)
        values = logprobs.logprobs[:count]
        self._sum += math.fsum(value for value in values if value is not None)
        if self._values is not None:
            self._values.extend(math.nan if value is None else value for value in values)
        if self._lists is None:
            return
        if self._echo is not None:
            self._list_prompt(self._lists, self._echo, logprobs.prompt_logprobs)
            self._echo = None
        widths = [len(piece) for piece in pieces[:count]]
        widths += [0] * (count - len(widths))
        self._list_tokens(self._lists, token_ids, widths, values, logprobs.top_logprobs[:count])

    def attach(self, piece: TextChunk) -> TextChunk:
        """Returns the text chunk with the logprobs that belong to it."""
        values, self._values = self._values, None if self._values is None else []
        is_last = piece.finish_reason is not None
        return replace(
            piece,
            logprobs_json=None if self._lists is None else self._take_listed(self._lists, piece),
            token_logprobs=None if values is None else tuple(values),
            cumulative_logprob=self._sum if values is not None and is_last else None,
        )

    def _list_prompt(self, lists: OpenAiLogprobs, echo: PromptEcho, prompt: PromptLogprobs | None) -> None:
        if prompt is not None:
            tops = (_NO_TOP, *prompt.tops) if prompt.tops else ()
            self._list_tokens(lists, self._echo_ids, echo.widths, (None, *prompt.values), tops)
            self._listed_prompt_tokens = len(self._echo_ids)

    def _list_tokens(
        self,
        lists: OpenAiLogprobs,
        token_ids: Sequence[int],
        widths: Sequence[int],
        logprobs: Sequence[float | None],
        tops: Sequence[TopLogprobs],
    ) -> None:
        if self._lists_ids:  # the offsets are then those of a text made of the tokens' numbers
            widths = [len(self._strings[token_id]) for token_id in token_ids]
        lists.add(token_ids, widths, logprobs, tops)

    def _take_listed(self, lists: OpenAiLogprobs, piece: TextChunk) -> bytes:
        if self._lists_ids:
            prompt_tokens, self._listed_prompt_tokens = self._listed_prompt_tokens, 0
            return lists.take(prompt_tokens + len(piece.token_ids or ()))
        self._sent_characters += len(piece.text)
        if piece.finish_reason is not None and not self._is_cut:
            return lists.take_all()
        return lists.take_until(self._sent_characters)


class _Entry(NamedTuple):
    token: str
    logprob: float | None
    top: dict[str, float] | None
    offset: int  # in characters, from the beginning of the choice's text


class OpenAiLogprobs:
    """The lists of OpenAI's `logprobs` object for one choice. `token_strings` maps a token id to its text in them."""

    def __init__(self, token_strings: Mapping[int, str]) -> None:
        self._strings = token_strings
        self._waiting: deque[_Entry] = deque()
        self._offset = 0

    def add(
        self,
        token_ids: Sequence[int],
        widths: Sequence[int],
        logprobs: Sequence[float | None],
        tops: Sequence[TopLogprobs],
    ) -> None:
        """Adds tokens. `widths` are the characters of text that each completed; `tops` may be empty.

        The other sequences have one item per token.
        """
        for index, (token_id, width, logprob) in enumerate(zip(token_ids, widths, logprobs, strict=True)):
            top = self._top(token_id, logprob, tops[index] if tops else _NO_TOP)
            self._waiting.append(_Entry(self._strings[token_id], logprob, top, self._offset))
            self._offset += width

    def take_until(self, offset: int) -> bytes:
        """Removes the tokens that begin before this character offset, and returns them as JSON."""
        count = 0
        for entry in self._waiting:
            if entry.offset >= offset:
                break
            count += 1
        return self.take(count)

    def take_all(self) -> bytes:
        """Removes all tokens, and returns them as JSON."""
        return self.take(len(self._waiting))

    def take(self, count: int) -> bytes:
        """Removes the next `count` tokens, and returns them as JSON."""
        entries = [self._waiting.popleft() for _ in range(count)]
        return orjson.dumps(
            {
                "tokens": [entry.token for entry in entries],
                "token_logprobs": [entry.logprob for entry in entries],
                "top_logprobs": [entry.top for entry in entries],
                "text_offset": [entry.offset for entry in entries],
            }
        )

    def _top(self, token_id: int, logprob: float | None, top: TopLogprobs) -> dict[str, float] | None:
        """The most likely tokens, plus the token itself. If two have the same text, the more likely one stays."""
        if logprob is None:
            return None
        logprobs: dict[str, float] = {}
        for other_id, other_logprob in zip(*top, strict=True):
            logprobs.setdefault(self._strings[other_id], other_logprob)
        if token_id not in top[0]:
            logprobs.setdefault(self._strings[token_id], logprob)
        return logprobs


def joined(pieces: Sequence[bytes]) -> bytes:
    """Returns consecutive pieces of one `logprobs` object as one piece. All are JSON."""
    whole: dict[str, list[object]] = {}
    for piece in pieces:
        for name, values in orjson.loads(piece).items():
            whole.setdefault(name, []).extend(values)
    return orjson.dumps(whole)
