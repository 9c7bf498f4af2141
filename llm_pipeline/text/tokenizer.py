"""The tokenizer of a model, read from its tokenizer.json. The only module that imports the tokenizers library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.models import BPE

from llm_pipeline.text.detokenizer import BYTE_CHARACTERS, TokenTable, build_table
from llm_pipeline.text.token_strings import TokenStrings

_ANCHOR_TEXTS = ("a", "the", ".", "0")  # any short text will do that is in the vocabulary


class TokenizerError(Exception):
    """tokenizer.json can't be used; the message says why and how to mend it."""


class Tokenizer:
    """Text to ids, what the checks of a request need to know about the vocabulary, and the table to decode with.

    One object serves all requests; encode may run in several threads.
    """

    def __init__(self, library_tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = library_tokenizer
        # Settings of training that tokenizer.json may carry; a prompt must be neither cut nor filled up.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokens = _tokens_by_id(library_tokenizer)
        added = library_tokenizer.get_added_tokens_decoder().values()
        special = {token.content for token in added if token.special}
        # By content, as the library's decode does it.
        self.special_ids = frozenset(token_id for token_id, token in self._tokens.items() if token in special)
        self.vocab_size = max(self._tokens, default=-1) + 1  # added tokens included; the model's may be larger (padded)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read tokenizer.json; TokenizerError when it is missing or corrupt."""
        if not path.is_file():
            raise TokenizerError(f"{path} is missing. Copy tokenizer.json from the model, or build the engine again.")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises no narrower class
            raise TokenizerError(f"{path} can't be read as a tokenizer.json: {error}") from error

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of a prompt. Special tokens written in it are parsed; tokenizer.json decides whether a BOS is added."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def token_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it."""
        return self._tokenizer.token_to_id(token)

    @cached_property
    def start_ids(self) -> tuple[int, ...]:
        """What encode puts in front of a text, such as a BOS."""
        bare, full = (self.encode("a", add_special_tokens=flag) for flag in (False, True))
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return tuple(full[:start])
        return ()

    @cached_property
    def token_strings(self) -> TokenStrings:
        """How each token is written where tokens are listed one by one."""
        return TokenStrings(self.token_table, self._tokens)

    @cached_property
    def token_table(self) -> TokenTable:
        """What a detokenizer needs. Takes some tenths of a second for a large vocabulary, once."""
        return build_table(
            _parts(self._tokenizer.decoder), self._tokens, self.special_ids, self._decode_all, self._anchor_ids()
        )

    @cached_property
    def max_token_bytes(self) -> int:
        """The length of the longest text that one token stands for, in bytes of UTF-8."""
        added = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        # A vocabulary of the ByteLevel pre-tokenizer has one character for each byte.
        length_of = len if _is_byte_level(self._tokenizer) else _utf8_length
        longest_added = max((_utf8_length(token) for token in added), default=1)
        return max(longest_added, max((length_of(token) for token in self._tokens.values()), default=1))

    def min_token_count(self, text: str) -> int:
        """A lower bound of len(encode(text)), about 3 ms for 1 MiB: refuses a huge prompt without encoding it.

        It is 0 for a tokenizer with a rule by which few tokens may stand for much text, such as one unknown token.
        """
        if self._bytes_without_token is None:
            return 0
        size = len(text.encode("utf-8").translate(None, self._bytes_without_token))
        return -(-size // self.max_token_bytes)

    @cached_property
    def _bytes_without_token(self) -> bytes | None:
        return _bytes_without_token(self._tokenizer)

    def _anchor_ids(self) -> list[int]:
        """Ids of some ordinary text; none if there are none without a special (unknown) token."""
        for text in _ANCHOR_TEXTS:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            if ids and self.special_ids.isdisjoint(ids):
                return ids
        return []

    def _decode_all(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)


def _tokens_by_id(tokenizer: tokenizers.Tokenizer) -> dict[int, str]:
    """Id -> token as the library's decode sees it: an added token hides a model's token of the same id."""
    tokens = {token_id: token for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items()}
    for token_id, added in tokenizer.get_added_tokens_decoder().items():
        tokens[token_id] = added.content
    return tokens


def _parts(component: Any) -> list[dict[str, Any]]:
    """The settings of a decoder, normalizer or pre-tokenizer as in tokenizer.json, sequences flattened; [] for None."""
    return [] if component is None else _flatten(json.loads(component.__getstate__()))


def _flatten(settings: dict[str, Any]) -> list[dict[str, Any]]:
    if settings["type"] != "Sequence":
        return [settings]
    members = next(value for value in settings.values() if isinstance(value, list))
    return [part for member in members for part in _flatten(member)]


# --- How few tokens a text can have ----------------------------------------------------------------------------------


def _bytes_without_token(tokenizer: tokenizers.Tokenizer) -> bytes | None:
    """The bytes that encode drops for lack of a token; None if text can get lost in other ways, or in one token."""
    model = tokenizer.model
    if not isinstance(model, BPE) or model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    if any(token.lstrip or token.rstrip for token in tokenizer.get_added_tokens_decoder().values()):
        return None  # such a token swallows any number of spaces
    if not all(_never_shortens(part) for part in _parts(tokenizer.normalizer)):
        return None
    if not all(_keeps_all(part) for part in _parts(tokenizer.pre_tokenizer)):
        return None
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    if _is_byte_level(tokenizer):
        return bytes(byte for byte, character in enumerate(BYTE_CHARACTERS) if character not in vocabulary)
    has_all_bytes = model.byte_fallback and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    return b"" if has_all_bytes else None


def _never_shortens(normalizer: dict[str, Any]) -> bool:
    if normalizer["type"] == "Replace" and "String" in normalizer["pattern"]:
        return _utf8_length(normalizer["content"]) >= _utf8_length(normalizer["pattern"]["String"])
    return bool(normalizer["type"] == "Prepend")


def _keeps_all(pre_tokenizer: dict[str, Any]) -> bool:
    if pre_tokenizer["type"] in ("Split", "Punctuation"):
        return bool(pre_tokenizer["behavior"] != "Removed")
    return pre_tokenizer["type"] in ("ByteLevel", "Digits", "Metaspace")


def _is_byte_level(tokenizer: tokenizers.Tokenizer) -> bool:
    return any(part["type"] == "ByteLevel" for part in _parts(tokenizer.pre_tokenizer))


def _utf8_length(text: str) -> int:
    return len(text.encode("utf-8"))
