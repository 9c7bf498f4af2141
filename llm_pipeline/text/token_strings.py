"""How single tokens are written where they are listed one by one: the `tokens` of OpenAI's log probs."""

from __future__ import annotations

from collections.abc import Mapping

from llm_pipeline.text.detokenizer import REPLACEMENT, PieceTable, TokenTable


class TokenStrings(dict[int, str]):
    """Token id -> its text, special tokens shown; made when it is first asked for.

    A token that holds part of a character reads `bytes:\\xe2\\x80`, as at OpenAI. An id without a token (they pad the
    vocabularies of some models) reads `token_id:N`.
    """

    def __init__(self, table: TokenTable, tokens: Mapping[int, str]) -> None:
        super().__init__()
        self._table = table
        self._tokens = tokens

    def __missing__(self, token_id: int) -> str:
        text = self[token_id] = self._text(token_id)
        return text

    def _text(self, token_id: int) -> str:
        if token_id not in self._tokens:
            return as_token_id(token_id)
        if isinstance(self._table, PieceTable):
            text = self._table.texts[token_id]
            return _escaped(self._table.partial_bytes[token_id]) if text is None else text
        # Other decoders don't say which bytes a token stands for; the vocabulary's way to write it tells tokens apart.
        text = "".join(self._table.start(skip_special_tokens=False).feed((token_id,)))
        return self._tokens[token_id] if not text or REPLACEMENT in text else text


class TokenIdStrings(dict[int, str]):
    """The same for clients that want tokens by number."""

    def __missing__(self, token_id: int) -> str:
        return as_token_id(token_id)


def as_token_id(token_id: int) -> str:
    """A token by its number, as `return_tokens_as_token_ids` wants it."""
    return f"token_id:{token_id}"


def _escaped(data: bytes) -> str:
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
