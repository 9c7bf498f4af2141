"""Loads the tokenizer of a model from its tokenizer.json. The only module that imports the tokenizers library."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.models import BPE

from llm_pipeline.text.detokenizer import BYTE_CHARACTERS, TokenTable, build_table
from llm_pipeline.text.private_spellings import is_markup, private_spellings, with_private_spellings
from llm_pipeline.text.token_strings import TokenStrings

_ANCHOR_TEXTS = ("a", "the", ".", "0")  # short texts, of which most vocabularies have at least one


class TokenizerError(Exception):
    """tokenizer.json can't be used. The message gives the cause and the fix."""


class Tokenizer:
    """Encodes text to token ids, describes the vocabulary for validation, and provides the table for decoding.

    One object serves all requests; `encode` may be called from several threads.
    """

    def __init__(self, library_tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = library_tokenizer
        # tokenizer.json may still have these settings of the training; a prompt must be neither truncated nor padded.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokens = _tokens_by_id(library_tokenizer)
        added = [token for _, token in sorted(library_tokenizer.get_added_tokens_decoder().items())]
        self.special_tokens = tuple(token.content for token in added if token.special)
        self.added_tokens = tuple(token.content for token in added if not token.special)
        special = set(self.special_tokens)
        # By content, like the library's decode.
        self.special_ids = frozenset(token_id for token_id, token in self._tokens.items() if token in special)
        self.vocab_size = max(self._tokens, default=-1) + 1  # added tokens included; the model's may be larger (padded)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Loads a tokenizer.json. Raises TokenizerError if it is missing or corrupt."""
        if not path.is_file():
            raise TokenizerError(f"{path} is missing. Copy tokenizer.json from the model, or build the engine again.")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises no narrower class
            raise TokenizerError(f"{path} can't be read as a tokenizer.json: {error}") from error

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Returns the token ids of a text, in which special tokens are parsed. tokenizer.json decides about a BOS."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_with_plain_spans(
        self, text: str, spans: Sequence[tuple[int, int]], *, add_special_tokens: bool = True
    ) -> list[int]:
        """Like `encode`, with spans of the text (starts and ends in code points) in which no added token is parsed.

        Neither is one that begins or ends in a span. `spans` ascend. The first call takes as long as loading the
        tokenizer.
        """
        parser = self._span_parser
        return parser.encode(text, spans, add_special_tokens=add_special_tokens)

    @cached_property
    def _span_parser(self) -> _SpanParser:
        return _SpanParser(self._tokenizer)

    def token(self, token_id: int) -> str | None:
        """Returns a token as written in the vocabulary, or None."""
        return self._tokens.get(token_id)

    def token_id(self, token: str) -> int | None:
        """Returns the id of a token as written in the vocabulary, or None."""
        return self._tokenizer.token_to_id(token)

    @cached_property
    def start_ids(self) -> tuple[int, ...]:
        """The ids that `encode` puts before a text, such as a BOS."""
        bare, full = (self.encode("a", add_special_tokens=flag) for flag in (False, True))
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return tuple(full[:start])
        return ()

    @cached_property
    def token_strings(self) -> TokenStrings:
        """The text of each token, for lists of tokens."""
        return TokenStrings(self.token_table, self._tokens)

    @cached_property
    def token_table(self) -> TokenTable:
        """The table for decoding. Takes some tenths of a second to build for a large vocabulary."""
        return build_table(
            _parts(self._tokenizer.decoder), self._tokens, self.special_ids, self._decode_all, self._anchor_ids()
        )

    @cached_property
    def max_token_bytes(self) -> int:
        """The length of the longest text of a token, in bytes of UTF-8."""
        added = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        # A vocabulary of the ByteLevel pre-tokenizer has one character for each byte.
        length_of = len if _is_byte_level(self._tokenizer) else _utf8_length
        longest_added = max((_utf8_length(token) for token in added), default=1)
        return max(longest_added, max((length_of(token) for token in self._tokens.values()), default=1))

    def min_token_count(self, text: str) -> int:
        """Returns a lower bound of len(encode(text)), to reject a huge prompt without encoding it (3 ms for 1 MiB).

        0 for a tokenizer that may encode much text as few tokens, for example as one unknown token.
        """
        if self._bytes_without_token is None:
            return 0
        size = len(text.encode("utf-8").translate(None, self._bytes_without_token))
        return -(-size // self.max_token_bytes)

    @cached_property
    def _bytes_without_token(self) -> bytes | None:
        return _bytes_without_token(self._tokenizer)

    def _anchor_ids(self) -> list[int]:
        """Returns the ids of some ordinary text; [] if every such text contains a special (unknown) token."""
        for text in _ANCHOR_TEXTS:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            if ids and self.special_ids.isdisjoint(ids):
                return ids
        return []

    def _decode_all(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)


class _SpanParser:
    """A second tokenizer, which knows its added tokens under private spellings."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        added = [token.content for _, token in sorted(tokenizer.get_added_tokens_decoder().items())]
        self._spellings = private_spellings([token for token in added if is_markup(token)])
        longest_first = sorted(self._spellings, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._tokenizer = tokenizers.Tokenizer.from_str(with_private_spellings(tokenizer.to_str(), self._spellings))
        self._ids = {
            private_id: token_id
            for token, private in self._spellings.items()
            if (private_id := self._tokenizer.token_to_id(private)) is not None
            and (token_id := tokenizer.token_to_id(token)) is not None
        }

    def encode(self, text: str, spans: Sequence[tuple[int, int]], *, add_special_tokens: bool) -> list[int]:
        parts, position = [], 0
        for start, end in spans:
            parts += [self._pattern.sub(self._private, text[position:start]), text[start:end]]
            position = end
        parts.append(self._pattern.sub(self._private, text[position:]))
        ids = self._tokenizer.encode("".join(parts), add_special_tokens=add_special_tokens).ids
        return [self._ids.get(token_id, token_id) for token_id in ids]

    def _private(self, match: re.Match[str]) -> str:
        return self._spellings[match[0]]


def _tokens_by_id(tokenizer: tokenizers.Tokenizer) -> dict[int, str]:
    """Returns id -> token for decoding: an added token takes precedence over a model's token of the same id."""
    tokens = {token_id: token for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items()}
    for token_id, added in tokenizer.get_added_tokens_decoder().items():
        tokens[token_id] = added.content
    return tokens


def _parts(component: Any) -> list[dict[str, Any]]:
    """Returns the settings of a decoder, normalizer or pre-tokenizer, sequences flattened; [] for None."""
    return [] if component is None else _flatten(json.loads(component.__getstate__()))


def _flatten(settings: dict[str, Any]) -> list[dict[str, Any]]:
    if settings["type"] != "Sequence":
        return [settings]
    members = next(value for value in settings.values() if isinstance(value, list))
    return [part for member in members for part in _flatten(member)]


# --- The lower bound of a text's token count --------------------------------------------------------------------------


def _bytes_without_token(tokenizer: tokenizers.Tokenizer) -> bytes | None:
    """Returns the bytes that `encode` drops for lack of a token; None if it may drop or merge text in other ways."""
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
