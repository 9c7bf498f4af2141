"""The text of a prompt, for answers that begin with it, and how many characters of it each of its tokens made."""

from __future__ import annotations

from dataclasses import dataclass

from llm_pipeline.protocol.messages import TextOptions
from llm_pipeline.text.detokenizer import TokenTable


@dataclass(frozen=True)
class PromptEcho:
    text: str
    widths: tuple[int, ...]  # for each token

    @classmethod
    def of(cls, table: TokenTable, options: TextOptions) -> PromptEcho:
        """The prompt of a request with `echo_ids`: as its client wrote it, or else as its tokens read."""
        if options.echo_text is None:
            return cls._decoded(table, options, options.skip_special_tokens)
        for skips in (False, True):
            found = cls._decoded(table, options, skips)
            if found.text == options.echo_text:
                return found
        # The tokenizer has put a special token in front, beside others that were written out; or it has changed the
        # text (case, accents, spaces).
        return cls(options.echo_text, _fitted(found.widths, len(options.echo_text)))

    @classmethod
    def _decoded(cls, table: TokenTable, options: TextOptions, skip_special_tokens: bool) -> PromptEcho:
        detokenizer = table.start(skip_special_tokens=skip_special_tokens, is_text_start=True)
        pieces = detokenizer.feed(options.echo_ids or ())
        return cls("".join((*pieces, detokenizer.finish())), tuple(map(len, pieces)))


def _fitted(widths: tuple[int, ...], length: int) -> tuple[int, ...]:
    """Widths that add up to no more than the text has: offsets must not point behind it."""
    fitted, left = [], length
    for width in widths:
        fitted.append(min(width, left))
        left -= fitted[-1]
    return tuple(fitted)
