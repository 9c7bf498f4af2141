"""The text of a prompt that precedes its completion (`echo`), and the characters that each of its tokens made."""

from __future__ import annotations

from dataclasses import dataclass

from llm_pipeline.protocol.messages import TextOptions
from llm_pipeline.text.detokenizer import TokenTable


@dataclass(frozen=True)
class PromptEcho:
    """The text of one prompt."""

    text: str
    widths: tuple[int, ...]  # characters of each token

    @classmethod
    def of(cls, table: TokenTable, options: TextOptions) -> PromptEcho:
        """Returns the prompt of a request with `echo_ids`: as the client sent it, or else decoded from the ids."""
        if options.echo_text is None:
            return cls._decoded(table, options, options.skip_special_tokens)
        for skips in (False, True):
            found = cls._decoded(table, options, skips)
            if found.text == options.echo_text:
                return found
        # The tokenizer has added a special token to others that the client wrote out, or it has changed the text (case,
        # accents, spaces).
        return cls(options.echo_text, _fitted(found.widths, len(options.echo_text)))

    @classmethod
    def _decoded(cls, table: TokenTable, options: TextOptions, skip_special_tokens: bool) -> PromptEcho:
        detokenizer = table.start(skip_special_tokens=skip_special_tokens, is_text_start=True)
        pieces = detokenizer.feed(options.echo_ids or ())
        return cls("".join((*pieces, detokenizer.finish())), tuple(map(len, pieces)))


def _fitted(widths: tuple[int, ...], length: int) -> tuple[int, ...]:
    """Returns widths that add up to at most `length`: offsets must not point beyond the text."""
    fitted, left = [], length
    for width in widths:
        fitted.append(min(width, left))
        left -= fitted[-1]
    return tuple(fitted)
