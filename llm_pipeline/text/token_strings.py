"""The text of single tokens, for lists of tokens: the `tokens` of OpenAI's logprobs."""

from __future__ import annotations

from collections.abc import Mapping

from llm_pipeline.text.detokenizer import REPLACEMENT, PieceTable, TokenTable


class TokenStrings(dict[int, str]):
    """Token id -> text, special tokens included. Entries are made on first use.

    A token with part of a character is written `bytes:\\xe2\\x80`, like OpenAI does. An id without a token (padding of
    the model's vocabulary) is written `token_id:N`.
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
        # Other decoders don't give the bytes of a token; as written in the vocabulary, tokens are at least distinct.
        text = "".join(self._table.start(skip_special_tokens=False).feed((token_id,)))
        return self._tokens[token_id] if not text or REPLACEMENT in text else text


class TokenIdStrings(dict[int, str]):
    """Token id -> `token_id:N`, for requests with `return_tokens_as_token_ids`."""

    def __missing__(self, token_id: int) -> str:
        return as_token_id(token_id)


def as_token_id(token_id: int) -> str:
    """Returns a token in the form of `return_tokens_as_token_ids`."""
    return f"token_id:{token_id}"


def _escaped(data: bytes) -> str:
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
