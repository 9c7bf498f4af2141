"""Random texts that a guide allows, by walks through its masks."""

from __future__ import annotations

import random

import numpy as np
import tokenizers

from llm_pipeline.guides.compilers.llguidance_compiler import GuideCompiler
from llm_pipeline.protocol.messages import Guide

_MAX_TOKENS = 2000
_CLOSERS = ('"', "]", "}")


def random_walk(compiler: GuideCompiler, library: tokenizers.Tokenizer, guide: Guide, seed: int, end: int) -> str:
    """Returns a text of random allowed tokens, which closes what is open as often as not.

    Raises GuideError if the guide is refused.
    """
    dice, matcher = random.Random(seed), compiler.compile(guide)
    closers = [library.token_to_id(closer) for closer in _CLOSERS]
    ids: list[int] = []
    while len(ids) < _MAX_TOKENS:
        (row,) = matcher.masks()
        allowed = np.flatnonzero(np.unpackbits(np.frombuffer(row, np.uint8), bitorder="little")).tolist()
        assert allowed, "no token is allowed"
        closing = [token_id for token_id in (end, *closers) if token_id in allowed]
        chosen = dice.choice(closing if closing and dice.random() < 0.5 else allowed)
        if chosen == end:
            return str(library.decode(ids, skip_special_tokens=False))
        ids.append(chosen)
        matcher.advance([chosen])
    raise AssertionError("the text does not end")
