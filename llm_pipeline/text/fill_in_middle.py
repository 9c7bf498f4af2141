"""Builds fill-in-the-middle prompts: the special tokens of the model families that support it, and their order.

A model that was not trained for it has none of these tokens; it can only continue a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm_pipeline.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Family:
    """One convention: the tokens before each part, and the token after which the model writes the middle, if any.

    `end` are the tokens with which its models end a middle, besides the end-of-sequence tokens.
    """

    prefix: str
    suffix: str
    middle: str | None
    end: tuple[str, ...] = ()
    suffix_first: bool = False


FAMILIES = (
    # Qwen2.5-Coder and CodeGemma, whose models may go on with the next file instead of ending
    Family("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", ("<|file_sep|>", "<|file_separator|>", "<|fim_pad|>")),
    Family("<fim_prefix>", "<fim_suffix>", "<fim_middle>", ("<file_sep>", "<fim_pad>")),  # StarCoder, Granite
    Family("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    Family("▁<PRE>", "▁<SUF>", "▁<MID>", ("▁<EOT>",)),  # Code Llama
    Family("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
    Family("[PREFIX]", "[SUFFIX]", None, suffix_first=True),  # Codestral
)


@dataclass(frozen=True)
class FillInMiddle:
    """The ids of the fill-in-the-middle tokens of one tokenizer. `end_ids` are stop token ids."""

    prefix_id: int
    suffix_id: int
    middle_id: int | None
    end_ids: tuple[int, ...]
    suffix_first: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> FillInMiddle | None:
        """Returns the ids for the first family whose tokens the tokenizer has; None if there is no such family."""
        for family in FAMILIES:
            names = (family.prefix, family.suffix, *([family.middle] if family.middle else []))
            ids = [tokenizer.token_id(name) for name in names]
            found = [token_id for token_id in ids if token_id is not None]
            if len(found) == len(names):
                ends = [tokenizer.token_id(name) for name in family.end]
                return cls(
                    found[0],
                    found[1],
                    found[2] if family.middle else None,
                    tuple(end for end in ends if end is not None),
                    family.suffix_first,
                )
        return None

    def prompt(self, start: Sequence[int], prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
        """Returns the token ids of a prompt for the text between `prefix` and `suffix`. `start` comes first (BOS)."""
        before, after = [self.prefix_id, *prefix], [self.suffix_id, *suffix]
        parts = (after, before) if self.suffix_first else (before, after)
        middle = [] if self.middle_id is None else [self.middle_id]
        return [*start, *parts[0], *parts[1], *middle]
