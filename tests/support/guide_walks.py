"""Random texts that a guide allows."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import tokenizers

from llm_pipeline.guides.compilers.llguidance_compiler import ConstraintMatcher, GuideCompiler
from llm_pipeline.protocol.messages import Guide

MAX_TOKENS = 2000


def unpacked(row: bytes) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.unpackbits(np.frombuffer(row, np.uint8), bitorder="little").view(np.bool_)


def allowed_by(matcher: ConstraintMatcher) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Returns the tokens that may come next, as bool[whole words of 32 tokens]."""
    (row,) = matcher.masks()
    return unpacked(row)


def random_text(compiler: GuideCompiler, library: tokenizers.Tokenizer, guide: Guide, seed: int) -> str:
    """Returns a text of random allowed tokens, which ends by a coin flip wherever it may end: the token <|end|>."""
    dice, matcher = random.Random(seed), compiler.compile(guide)
    ids: list[int] = []
    end = library.token_to_id("<|end|>")
    assert end is not None
    while len(ids) < MAX_TOKENS:
        allowed = np.flatnonzero(allowed_by(matcher)).tolist()
        assert allowed, "no token is allowed"
        assert max(allowed) <= end, "a token that the tokenizer does not have"
        chosen = end if end in allowed and dice.random() < 0.5 else dice.choice(allowed)
        if chosen == end:
            return library.decode(ids, skip_special_tokens=False)
        ids.append(chosen)
        matcher.advance([chosen])
    raise AssertionError("the text does not end")
