"""Decodes token ids to text, a few tokens at a time: a table per tokenizer, and a small state per request.

The text of a completion is decode(prompt + completion) minus decode(prompt), where decode is the tokenizer library's.
So a first token keeps its leading space, and bytes that complete a character of the prompt show that character. Two
exceptions, for which `start` takes arguments: after a prompt without text (`is_text_start`) it is decode(completion),
and a character that the end of the completion cuts off is dropped instead of shown as U+FFFD.

How it works: most tokens are whole characters, so their text is looked up. The few that hold part of a character go
through an incremental UTF-8 decoder. This covers ByteLevel, SentencePiece-style and Metaspace decoders; a tokenizer
with another decoder gets a window of its last tokens decoded by the library, which is correct but far slower.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

REPLACEMENT = "\ufffd"  # decoders show it for bytes that are not UTF-8
_MAX_HELD_TOKENS = 16  # WindowDetokenizer: a character has at most 4 bytes, so after 16 tokens the bytes are invalid

LibraryDecode = Callable[[Sequence[int]], str]
"""The tokenizer library's decode of token ids, special tokens included."""


class Detokenizer(Protocol):
    """The decoding state of one request."""

    @property
    def plain_texts(self) -> Mapping[int, str | None] | None:
        """Token id -> text, while decoding is this lookup and nothing else: valid until the next `feed`.

        None while bytes wait for more, and with decoders that don't work token by token. A token whose text is None has
        to be fed.
        """

    def feed(self, token_ids: Sequence[int]) -> list[str]:
        """Returns the new text, one item per id. A character belongs to the token that completed it."""

    def finish(self) -> str:
        """Returns the text that was waiting for more tokens. Unfinished characters are dropped."""


class TokenTable(Protocol):
    """The decoding data of one tokenizer, shared by all requests."""

    def start(
        self, *, skip_special_tokens: bool, context_ids: Sequence[int] = (), is_text_start: bool = False
    ) -> Detokenizer:
        """Returns a detokenizer for a completion after a prompt that ends with `context_ids`.

        Text prompts end with a whole character and need no `context_ids`.
        """


def build_table(
    decoder: Sequence[Mapping[str, Any]],
    tokens: Mapping[int, str],
    special_ids: Collection[int],
    decode: LibraryDecode,
    anchor_ids: Sequence[int] = (),
) -> TokenTable:
    """Returns the table for a tokenizer.

    `decoder` lists the stages of tokenizer.json's decoder; `tokens` maps each id to its token as in the vocabulary.
    `anchor_ids` are the ids of any text, used as a preceding prompt with decoders other than the known ones.
    """
    kinds = [stage["type"] for stage in decoder]
    if kinds == ["ByteLevel"]:
        return _byte_level_table(tokens, special_ids, decode)
    if kinds == ["Metaspace"]:
        space = [(decoder[0]["replacement"], " ")]
        drops_first_space = decoder[0].get("prepend_scheme", "always") != "never"
        return _sentencepiece_table(tokens, special_ids, decode, space, False, drops_first_space)
    if _is_sentencepiece(decoder):
        replaced = [(s["pattern"]["String"], s["content"]) for s in decoder if s["type"] == "Replace"]
        return _sentencepiece_table(
            tokens, special_ids, decode, replaced, "ByteFallback" in kinds, kinds[-1] == "Strip"
        )
    return LibraryTable(decode, frozenset(tokens), frozenset(special_ids), tuple(anchor_ids))


# --- Decoders that work token by token -------------------------------------------------------------------------------


class _Texts(dict[int, "str | None"]):
    """Token id -> text; None for part of a character. Ids that only pad the model's vocabulary have empty text."""

    def __missing__(self, token_id: int) -> str:
        return ""


@dataclass(frozen=True)
class PieceTable:
    """The tokens of a decoder that works token by token.

    `errors` is the codecs error handler for bytes that are not UTF-8. With `drops_first_space` the first token of a
    text has a different text, which `decode` returns.
    """

    texts: _Texts
    texts_without_special: _Texts
    partial_bytes: Mapping[int, bytes]  # of the tokens whose text is None
    errors: str
    drops_first_space: bool
    decode: LibraryDecode

    def start(
        self, *, skip_special_tokens: bool, context_ids: Sequence[int] = (), is_text_start: bool = False
    ) -> PieceDetokenizer:
        texts = self.texts_without_special if skip_special_tokens else self.texts
        detokenizer = PieceDetokenizer(self, texts, is_first=is_text_start and self.drops_first_space)
        if context_ids:
            detokenizer.feed_context(context_ids)
        return detokenizer


class PieceDetokenizer:
    """Looks up the text of each token, in constant time."""

    plain_texts: _Texts | None  # None if any of the private state below matters

    def __init__(self, table: PieceTable, texts: _Texts, *, is_first: bool) -> None:
        self._table = table
        self._texts = texts
        self._is_first = is_first  # the next token is decoded as the first of a text
        self._pending = b""  # the bytes so far of an unfinished character
        self._context_marks = 0  # U+FFFD to drop from the next text, because they represent bytes of the prompt
        self.plain_texts = None if is_first else texts

    def feed(self, token_ids: Sequence[int]) -> list[str]:
        texts = self._texts
        pieces = [texts[token_id] for token_id in token_ids]
        if self.plain_texts is not None and None not in pieces:
            return pieces  # type: ignore[return-value]  # the line above checked it
        return [self._step(token_id, text) for token_id, text in zip(token_ids, pieces, strict=True)]

    def feed_context(self, context_ids: Sequence[int]) -> None:
        """Reads the end of the prompt, of which only the bytes of an unfinished last character matter."""
        is_first = self._is_first
        self.feed(context_ids)
        pending = self._pending
        self._context_marks = len(self._decode_pending())
        self._pending = pending
        self._is_first = is_first
        self.plain_texts = None if self._pending or is_first else self._texts

    def finish(self) -> str:
        self._pending = b""
        self._context_marks = 0
        self.plain_texts = None if self._is_first else self._texts
        return ""

    def _step(self, token_id: int, text: str | None) -> str:
        if text == "":
            return ""
        if text is None:
            text = self._decode_bytes(self._table.partial_bytes[token_id])
        else:
            if self._is_first:
                text = self._table.decode((token_id,))
            text = self._decode_pending() + text  # whole characters follow, so it stays unfinished
        self._is_first = False
        if text and self._context_marks:
            text = _without_marks(text, self._context_marks)
            self._context_marks = 0
        self.plain_texts = None if self._pending else self._texts
        return text

    def _decode_bytes(self, data: bytes) -> str:
        data = self._pending + data
        text, used = codecs.utf_8_decode(data, self._table.errors, False)
        self._pending = data[used:]
        if b"\xed\xa0" <= self._pending < b"\xee":
            # Half a surrogate is not a character, but Python waits for its third byte for the sake of surrogatepass.
            text += self._decode_pending()
        return text

    def _decode_pending(self) -> str:
        """Returns U+FFFD for an unfinished character that is never going to be completed."""
        text, _ = codecs.utf_8_decode(self._pending, self._table.errors, True)
        self._pending = b""
        return text


def _without_marks(text: str, count: int) -> str:
    """Returns `text` without up to `count` U+FFFD at its start."""
    for _ in range(count):
        text = text.removeprefix(REPLACEMENT)
    return text


def _piece_table(
    texts: _Texts,
    partial_bytes: Mapping[int, bytes],
    special_ids: Collection[int],
    errors: str,
    drops_first_space: bool,
    decode: LibraryDecode,
) -> PieceTable:
    hidden = _Texts(texts)
    hidden.update((token_id, "") for token_id in special_ids)
    return PieceTable(texts, hidden, partial_bytes, errors, drops_first_space, decode)


# --- ByteLevel (GPT-2 and most models since) -------------------------------------------------------------------------


def _byte_characters() -> list[str]:
    """Returns the character of each byte in GPT-2's vocabulary: itself if printable, else one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    substitutes = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(substitutes)) for byte in range(256)]


BYTE_CHARACTERS = _byte_characters()  # byte -> character
_BYTE_OF = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}


def _byte_level_table(tokens: Mapping[int, str], special_ids: Collection[int], decode: LibraryDecode) -> PieceTable:
    texts, partial_bytes = _Texts(), {}
    for token_id, token in tokens.items():
        raw = _bytes_of(token)
        try:
            texts[token_id] = raw.decode("utf-8")
        except UnicodeDecodeError:
            texts[token_id] = None
            partial_bytes[token_id] = raw
    # The library decodes with Rust's from_utf8_lossy, which marks broken sequences as Python's "replace" does.
    return _piece_table(texts, partial_bytes, special_ids, "replace", False, decode)


def _bytes_of(token: str) -> bytes:
    """Returns the bytes of a token. Added tokens, with characters outside of the byte alphabet, are plain text."""
    try:
        return bytes([_BYTE_OF[character] for character in token])
    except KeyError:
        return token.encode("utf-8")


# --- SentencePiece style (Llama 2, Mistral, Gemma) and Metaspace -----------------------------------------------------


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    """Returns one U+FFFD for each byte that is not UTF-8, like the library's ByteFallback."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return REPLACEMENT * (error.end - error.start), error.end


_EACH_BYTE = "llm_pipeline.replace_each_byte"
codecs.register_error(_EACH_BYTE, _replace_each_byte)


def _is_sentencepiece(decoder: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the stages are Replace..., ByteFallback, Fuse, Strip, each optional, with known settings."""
    stages = list(decoder)
    while stages and stages[0]["type"] == "Replace" and "String" in stages[0]["pattern"]:
        stages.pop(0)
    if stages and stages[0]["type"] == "ByteFallback":
        stages.pop(0)
    if stages and stages[0]["type"] == "Fuse":
        stages.pop(0)
        if stages and [stages[0].get(key) for key in ("type", "content", "start", "stop")] == ["Strip", " ", 1, 0]:
            stages.pop(0)
    return len(decoder) > 0 and not stages


def _sentencepiece_table(
    tokens: Mapping[int, str],
    special_ids: Collection[int],
    decode: LibraryDecode,
    replaced: Sequence[tuple[str, str]],
    has_byte_tokens: bool,
    drops_first_space: bool,
) -> PieceTable:
    """Returns the table of a decoder whose byte tokens look like `<0xE4>`.

    The library decodes a whole run of byte tokens at once: valid UTF-8 becomes text, else every byte becomes U+FFFD.
    Characters that have been sent can't be taken back, so here the valid characters of an invalid run stay, and each
    other byte becomes one U+FFFD. The text of a valid run is the same.
    """
    texts, partial_bytes = _Texts(), {}
    for token_id, token in tokens.items():
        for old, new in replaced:
            token = token.replace(old, new)
        byte = _byte_of_token(token) if has_byte_tokens else None
        if byte is not None and byte >= 0x80:
            texts[token_id] = None
            partial_bytes[token_id] = bytes([byte])
        else:
            texts[token_id] = token if byte is None else chr(byte)
    return _piece_table(texts, partial_bytes, special_ids, _EACH_BYTE, drops_first_space, decode)


def _byte_of_token(token: str) -> int | None:
    if len(token) != 6 or not token.startswith("<0x") or not token.endswith(">"):
        return None
    try:
        return int(token[3:5], 16)
    except ValueError:
        return None


# --- Any other decoder -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LibraryTable:
    """Decodes with the tokenizer library. `anchor_ids` are the ids of any text."""

    decode: LibraryDecode
    known_ids: frozenset[int]
    special_ids: frozenset[int]
    anchor_ids: tuple[int, ...]

    def start(
        self, *, skip_special_tokens: bool, context_ids: Sequence[int] = (), is_text_start: bool = False
    ) -> WindowDetokenizer:
        shown_ids = self.known_ids - self.special_ids if skip_special_tokens else self.known_ids
        prompt_ids = () if is_text_start else (*self.anchor_ids, *context_ids)
        return WindowDetokenizer(self.decode, shown_ids, self.anchor_ids, prompt_ids)


class WindowDetokenizer:
    """Decodes a window of the last tokens with the library, and returns the text after what it has returned before.

    Text that ends in U+FFFD waits for more tokens, at most `_MAX_HELD_TOKENS`.
    """

    plain_texts: None = None

    def __init__(
        self,
        decode: LibraryDecode,
        shown_ids: frozenset[int],
        anchor_ids: Sequence[int],
        prompt_ids: Sequence[int],
    ) -> None:
        self._decode = decode
        self._shown_ids = shown_ids
        self._anchor_ids = (
            anchor_ids  # start every later window, because decoders treat the start of a text differently
        )
        self._window = [token_id for token_id in prompt_ids if token_id in shown_ids]
        self._shown_count = len(self._window)  # tokens of the window whose text has been returned
        prompt_text = decode(self._window) if self._window else ""
        self._shown_text = prompt_text.rstrip(REPLACEMENT)
        self._context_marks = len(prompt_text) - len(self._shown_text)

    def feed(self, token_ids: Sequence[int]) -> list[str]:
        return [self._step(token_id) if token_id in self._shown_ids else "" for token_id in token_ids]

    def finish(self) -> str:
        if self._shown_count == len(self._window):
            return ""
        text = self._decode(self._window)[len(self._shown_text) :].rstrip(REPLACEMENT)
        del self._window[self._shown_count :]
        return _without_marks(text, self._context_marks)

    def _step(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self._decode(self._window)
        is_waiting = text.endswith(REPLACEMENT) or len(text) <= len(self._shown_text)
        if is_waiting and len(self._window) - self._shown_count < _MAX_HELD_TOKENS:
            return ""
        new_text = _without_marks(text[len(self._shown_text) :], self._context_marks)
        self._context_marks = 0
        self._window[: self._shown_count] = self._anchor_ids
        self._shown_count = len(self._window)
        self._shown_text = self._decode(self._window)
        return new_text
