"""Gives the added tokens of a tokenizer.json spellings that no text contains, so that a prompt chooses which to parse.

The tokenizer finds added tokens anywhere in a text. To encode a part of it as ordinary text, a second tokenizer knows
each of them under a private spelling only, and the others of the text are replaced by these before it encodes. Its
pre-tokenization, its normalization and its spaces at the start of a text are those of the first one, which encoding the
parts one by one would change.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

_START, _END = "\U000f0000", "\U000f0001"  # private use: normalizers leave them alone


def private_spellings(tokens: Sequence[str]) -> dict[str, str]:
    """A spelling for each token, which a client can't guess."""
    nonce = secrets.token_hex(8)
    return {token: f"{_START}{nonce}{index}{_END}" for index, token in enumerate(tokens)}


def is_markup(token: str) -> bool:
    """Whether a token is more than a word or spaces, which some vocabularies add for better compression."""
    return any(not (character.isalnum() or character.isspace()) for character in token)


def with_private_spellings(tokenizer_json: str, spellings: Mapping[str, str]) -> str:
    """The tokenizer.json with the tokens of `spellings` under their private names, in the vocabulary too.

    There, the model could otherwise make the token of its letters. An entry keeps its id.
    """
    document: dict[str, Any] = json.loads(tokenizer_json)
    for token in document.get("added_tokens") or ():
        token["content"] = spellings.get(token["content"], token["content"])
    model = document["model"]
    merged = _merged_tokens(model)
    renamed = {token: private for token, private in spellings.items() if token not in merged}
    if isinstance(vocabulary := model.get("vocab"), dict):
        model["vocab"] = {renamed.get(token, token): token_id for token, token_id in vocabulary.items()}
    elif isinstance(vocabulary, list):  # Unigram: pairs of a token and its score
        model["vocab"] = [[renamed.get(token, token), score] for token, score in vocabulary]
    if isinstance(unknown := model.get("unk_token"), str):
        model["unk_token"] = renamed.get(unknown, unknown)
    return json.dumps(document, ensure_ascii=False)


def _merged_tokens(model: Mapping[str, Any]) -> frozenset[str]:
    """Tokens that take part in merges of BPE, which must keep their names."""
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model.get("merges") or ()]
    return frozenset(part for pair in pairs for part in (*pair, "".join(pair)))
