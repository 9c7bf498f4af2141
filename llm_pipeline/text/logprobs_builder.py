"""What one request's client is told about log probs: OpenAI's lists beside the text, and bare numbers.

TextAssembler hands over each chunk of tokens as it decodes it, and each piece of text before it goes out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llm_pipeline.protocol.messages import TextChunk, TextOptions, TokenChunk
from llm_pipeline.text.logprobs import OpenAiLogprobs
from llm_pipeline.text.prompt_echo import PromptEcho
from llm_pipeline.text.token_strings import TokenIdStrings


class LogprobsBuilder:
    """See the module. Made only for requests that ask for log probs."""

    def __init__(self, options: TextOptions, token_strings: Mapping[int, str], echo: PromptEcho | None) -> None:
        self._names = TokenIdStrings() if options.return_tokens_as_token_ids else token_strings
        self._list = None if options.num_logprobs is None else OpenAiLogprobs(self._names)
        self._has_ids = options.return_tokens_as_token_ids
        self._echo = echo
        self._echo_ids = options.echo_ids or ()
        self._values: list[float] | None = [] if options.return_logprob_values else None
        self._total = 0.0
        self._sent_characters = 0
        self._is_cut = False

    def take(self, chunk: TokenChunk, count: int, pieces: Sequence[str], *, is_cut: bool) -> None:
        """The first `count` tokens of a chunk are the completion's; `pieces` are the texts of its tokens.

        `is_cut` says that a stop string ends the text somewhere in there.
        """
        self._is_cut = is_cut
        values = chunk.logprobs[:count]
        self._total += math.fsum(value for value in values if value is not None)
        if self._values is not None:
            self._values.extend(math.nan if value is None else value for value in values)
        if self._list is None:
            return
        if self._echo is not None:
            self._list_prompt(self._list, self._echo, chunk)
            self._echo = None
        widths = [len(piece) for piece in pieces[:count]]
        widths += [0] * (count - len(widths))
        self._add(self._list, chunk.token_ids[:count], widths, values, chunk.top_logprobs[:count])

    def _list_prompt(self, log_prob_list: OpenAiLogprobs, echo: PromptEcho, chunk: TokenChunk) -> None:
        found = chunk.prompt_logprobs
        if found is None:
            return
        none = ((), ())
        tops = (none, *found.tops) if found.tops else ()
        self._add(log_prob_list, self._echo_ids, echo.widths, (None, *found.values), tops)

    def _add(self, log_prob_list: OpenAiLogprobs, ids: Sequence[int], widths: Sequence[int], *log_probs: Any) -> None:
        if self._has_ids:  # the text is the tokens' numbers
            widths = [len(self._names[token_id]) for token_id in ids]
        log_prob_list.add(ids, widths, *log_probs)

    def tell(self, piece: TextChunk) -> TextChunk:
        """The piece with what is to be told beside its text."""
        values, self._values = self._values, None if self._values is None else []
        is_last = piece.finish_reason is not None
        return replace(
            piece,
            logprobs_json=None if self._list is None else self._listed(self._list, piece),
            token_logprobs=None if values is None else tuple(values),
            cumulative_logprob=self._total if values is not None and is_last else None,
        )

    def _listed(self, log_prob_list: OpenAiLogprobs, piece: TextChunk) -> bytes:
        if self._has_ids:
            return log_prob_list.take(len(piece.token_ids or ()))
        self._sent_characters += len(piece.text)
        if piece.finish_reason is not None and not self._is_cut:
            return log_prob_list.take_all()
        return log_prob_list.take_until(self._sent_characters)
