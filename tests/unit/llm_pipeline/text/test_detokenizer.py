"""Detokenizers equal the library's own decode of the whole text, for every way of splitting the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from llm_pipeline.text.detokenizer import LibraryTable, PieceTable
from llm_pipeline.text.tokenizer import Tokenizer
from tests.support.token_streams import id_of, stream

PROPERTY = settings(max_examples=200, deadline=None, derandomize=True)

FRAGMENTS = [
    "Hello", " world", "  ", "\n", "the quick", "<|im_start|>", "<|endoftext|>", "<tool call>", "<s>", "</s>", "▁", " ",
    "你好", "世界", "こ", "한글", "e\u0301", "a\u0308\u0323", "😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "\u200d",
    "\u0000", "ÿ", "𝔘",
]  # fmt: skip
texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5), max_size=12).map("".join)
sizes = st.lists(st.integers(0, 4), min_size=1, max_size=8).filter(any)
random_ids = st.lists(st.integers(0, 460), max_size=40)


def is_unfinished(data: bytes) -> bool:
    """Whether the bytes end inside a character: some further bytes complete it."""
    tails = [b"\x80", b"\x80\x80"]
    tails += [bytes([first]) + b"\x80" * count for first in (0x90, 0xA0) for count in range(3)] + [b"\x80" * 3]
    starts = range(1, min(3, len(data)) + 1)
    return any(is_character(data[-start:] + tail) for start in starts for tail in tails)


def is_character(data: bytes) -> bool:
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError:
        return False


def bytes_of(tokenizer: Tokenizer, token_ids: Sequence[int], *, skip: bool) -> bytes:
    table = tokenizer.token_table
    assert isinstance(table, PieceTable)
    shown = table.texts_without_special if skip else table.texts
    pieces = (shown[token_id] for token_id in token_ids)
    return b"".join(
        table.partial_bytes[token_id] if piece is None else piece.encode()
        for token_id, piece in zip(token_ids, pieces, strict=True)
    )


# --- Byte level ------------------------------------------------------------------------------------------------------


@given(text=texts, chunk_sizes=sizes, skip=st.booleans(), cut=st.integers(0, 10))
@PROPERTY
def test_byte_level_equals_the_library(
    byte_level: Tokenizer,
    byte_level_library: tokenizers.Tokenizer,
    text: str,
    chunk_sizes: list[int],
    skip: bool,
    cut: int,
) -> None:
    token_ids = byte_level.encode(text)
    token_ids = token_ids[: len(token_ids) - cut]
    whole = byte_level_library.decode(token_ids, skip_special_tokens=skip)
    if is_unfinished(bytes_of(byte_level, token_ids, skip=skip)):
        whole = whole[:-1]
    assert stream(byte_level.token_table, token_ids, chunk_sizes, skip_special_tokens=skip) == whole


@given(token_ids=random_ids, chunk_sizes=sizes, skip=st.booleans())
@PROPERTY
def test_byte_level_equals_the_library_on_random_tokens(
    byte_level: Tokenizer,
    byte_level_library: tokenizers.Tokenizer,
    token_ids: list[int],
    chunk_sizes: list[int],
    skip: bool,
) -> None:
    """Random tokens include invalid UTF-8, special tokens anywhere, and ids beyond the vocabulary."""
    whole = byte_level_library.decode(token_ids, skip_special_tokens=skip)
    if is_unfinished(bytes_of(byte_level, token_ids, skip=skip)):
        whole = whole[:-1]
    assert stream(byte_level.token_table, token_ids, chunk_sizes, skip_special_tokens=skip) == whole


@given(data=st.lists(st.sampled_from([0x41, 0x80, 0x90, 0xA0, 0xBF, 0xC0, 0xC3, 0xE0, 0xE4, 0xED, 0xF0, 0xF4, 0xFF])))
@PROPERTY
def test_byte_level_equals_the_library_on_invalid_bytes(
    byte_level: Tokenizer, byte_level_library: tokenizers.Tokenizer, data: list[int]
) -> None:
    """Rust's from_utf8_lossy and Python's decoder must agree on the number of U+FFFD for an invalid sequence."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    by_byte = {
        bytes_of(byte_level, [token_id], skip=False): token_id
        for token_id in (id_of(byte_level_library, character) for character in alphabet)
    }
    token_ids = [by_byte[bytes([byte])] for byte in data]
    whole = byte_level_library.decode(token_ids)
    expected = whole[:-1] if is_unfinished(bytes(data)) else whole
    assert stream(byte_level.token_table, token_ids, [1]) == expected


def test_a_character_is_shown_with_its_last_byte(byte_level: Tokenizer) -> None:
    token_ids = byte_level.encode("𝔘a")
    detokenizer = byte_level.token_table.start(skip_special_tokens=True)
    assert [detokenizer.feed([token_id]) for token_id in token_ids] == [[""], [""], [""], ["𝔘"], ["a"]]


def test_bytes_join_over_a_hidden_special_token(byte_level: Tokenizer) -> None:
    first, *rest = byte_level.encode("𝔘")
    special = byte_level.encode("<|im_start|>")
    assert stream(byte_level.token_table, [first, *special, *rest], [1]) == "𝔘"


def test_an_unfinished_character_is_dropped(byte_level: Tokenizer) -> None:
    assert stream(byte_level.token_table, byte_level.encode("a𝔘")[:-1], [1]) == "a"


def test_an_added_token_outside_the_byte_alphabet_is_plain_text(byte_level: Tokenizer) -> None:
    token_ids = byte_level.encode("<tool call>")
    assert len(token_ids) == 1
    assert stream(byte_level.token_table, token_ids, [1]) == "<tool call>"


def test_ids_beyond_the_vocabulary_have_no_text(byte_level: Tokenizer) -> None:
    token_ids = [byte_level.vocab_size + 7, *byte_level.encode("a"), byte_level.vocab_size]
    assert stream(byte_level.token_table, token_ids, [2]) == "a"


def test_tokens_are_looked_up_not_decoded(byte_level: Tokenizer) -> None:
    """The work per token must not grow with the text, so the library's decode of the whole text is never used."""
    table = byte_level.token_table
    assert isinstance(table, PieceTable)

    def refuse(token_ids: Sequence[int]) -> str:
        raise AssertionError(token_ids)

    assert stream(replace(table, decode=refuse), byte_level.encode("Hello 𝔘 世界"), [2]) == "Hello 𝔘 世界"


# --- After a prompt --------------------------------------------------------------------------------------------------


@given(prompt=texts, text=texts.filter(lambda text: "\ufffd" not in text), chunk_sizes=sizes, data=st.data())
@PROPERTY
def test_generated_bytes_complete_the_prompts_character(
    byte_level: Tokenizer,
    byte_level_library: tokenizers.Tokenizer,
    prompt: str,
    text: str,
    chunk_sizes: list[int],
    data: st.DataObject,
) -> None:
    token_ids = byte_level.encode(prompt + text)
    cut = data.draw(st.integers(0, len(token_ids)))
    context_ids = token_ids[max(0, cut - 8) : cut]
    before = byte_level_library.decode(token_ids[:cut])
    if is_unfinished(bytes_of(byte_level, token_ids[:cut], skip=True)):
        before = before[:-1]
    whole = byte_level_library.decode(token_ids)
    streamed = stream(byte_level.token_table, token_ids[cut:], chunk_sizes, context_ids=context_ids)
    assert before + streamed == whole


def test_a_prompts_character_that_stays_unfinished_shows_nothing(
    byte_level: Tokenizer, sentencepiece: Tokenizer
) -> None:
    """Its U+FFFD would be an artifact: the client cut the character, and the prompt is not part of the text."""
    for tokenizer in (byte_level, sentencepiece):
        context_ids = tokenizer.encode("𝔘")[:-1]
        assert stream(tokenizer.token_table, tokenizer.encode("a")[-1:], [1], context_ids=context_ids) == "a"


def test_sentencepiece_completes_the_prompts_character(sentencepiece: Tokenizer) -> None:
    token_ids = sentencepiece.encode("世")
    assert stream(sentencepiece.token_table, token_ids[-1:], [1], context_ids=token_ids[:-1]) == "世"


# --- SentencePiece style ---------------------------------------------------------------------------------------------


@given(text=texts, chunk_sizes=sizes, skip=st.booleans())
@PROPERTY
def test_sentencepiece_equals_the_library_from_the_start(
    sentencepiece: Tokenizer,
    sentencepiece_library: tokenizers.Tokenizer,
    text: str,
    chunk_sizes: list[int],
    skip: bool,
) -> None:
    token_ids = sentencepiece.encode(text)
    whole = sentencepiece_library.decode(token_ids, skip_special_tokens=skip)
    table = sentencepiece.token_table
    assert stream(table, token_ids, chunk_sizes, skip_special_tokens=skip, is_text_start=True) == whole


@given(prompt=texts, text=texts, chunk_sizes=sizes, skip=st.booleans())
@PROPERTY
def test_sentencepiece_keeps_the_leading_space_after_a_prompt(
    sentencepiece: Tokenizer,
    sentencepiece_library: tokenizers.Tokenizer,
    prompt: str,
    text: str,
    chunk_sizes: list[int],
    skip: bool,
) -> None:
    prompt_ids = [*sentencepiece.encode(prompt), *sentencepiece.encode("x")]
    token_ids = sentencepiece.encode(text)
    before = sentencepiece_library.decode(prompt_ids, skip_special_tokens=skip)
    whole = sentencepiece_library.decode(prompt_ids + token_ids, skip_special_tokens=skip)
    assert before + stream(sentencepiece.token_table, token_ids, chunk_sizes, skip_special_tokens=skip) == whole


@given(token_ids=random_ids, chunk_sizes=sizes, is_text_start=st.booleans())
@PROPERTY
def test_sentencepiece_on_random_tokens_does_not_depend_on_the_split(
    sentencepiece: Tokenizer, token_ids: list[int], chunk_sizes: list[int], is_text_start: bool
) -> None:
    table = sentencepiece.token_table
    one_by_one = stream(table, token_ids, [1], is_text_start=is_text_start)
    assert stream(table, token_ids, chunk_sizes, is_text_start=is_text_start) == one_by_one


@given(text=texts, cut=st.integers(1, 20))
@PROPERTY
def test_sentencepiece_never_shows_a_cut_character(sentencepiece: Tokenizer, text: str, cut: int) -> None:
    token_ids = sentencepiece.encode(text.replace("\ufffd", ""))
    whole = stream(sentencepiece.token_table, token_ids, [1])
    part = stream(sentencepiece.token_table, token_ids[: len(token_ids) - cut], [1])
    assert whole.startswith(part)
    assert "\ufffd" not in part


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["<0xE4>", "<0xB8>", "<0x96>"], "世"),
        (["<0xE4>", "<0xB8>", "a"], "\ufffd\ufffda"),
        (["<0xFF>", "a"], "\ufffda"),
        (["<0xE4>", "<0xB8>", "<0x96>", "<0xFF>", "a"], "世\ufffda"),
        (["<0xE4>", "<0xE4>", "<0xB8>", "<0x96>"], "\ufffd世"),
        (["<0xE4>", "<0xB8>", "<0x41>"], "\ufffd\ufffdA"),
        (["a", "<0xE4>", "<0xB8>"], "a"),
    ],
    ids=["whole", "broken", "never-valid", "valid-then-broken", "broken-then-valid", "ascii-byte", "cut"],
)
def test_invalid_byte_tokens(
    sentencepiece: Tokenizer, sentencepiece_library: tokenizers.Tokenizer, tokens: list[str], text: str
) -> None:
    """One U+FFFD per invalid byte. Unlike in the library, valid characters of the same run stay: they were sent."""
    token_ids = [id_of(sentencepiece_library, token) for token in tokens]
    assert stream(sentencepiece.token_table, token_ids, [1]) == text


# --- Metaspace -------------------------------------------------------------------------------------------------------


@given(prompt=texts, text=texts, token_ids=random_ids, chunk_sizes=sizes)
@PROPERTY
def test_metaspace_equals_the_library(
    metaspace_library: tokenizers.Tokenizer, prompt: str, text: str, token_ids: list[int], chunk_sizes: list[int]
) -> None:
    token_ids = [*metaspace_library.encode(text).ids, *token_ids]
    prompt_ids = metaspace_library.encode("x" + prompt).ids
    before, whole = metaspace_library.decode(prompt_ids), metaspace_library.decode(prompt_ids + token_ids)
    table = Tokenizer(metaspace_library).token_table
    assert isinstance(table, PieceTable)
    assert before + stream(table, token_ids, chunk_sizes) == whole
    assert stream(table, token_ids, chunk_sizes, is_text_start=True) == metaspace_library.decode(token_ids)


# --- Decoders with and without a table --------------------------------------------------------------------------------

REPLACE = decoders.Replace("▁", " ")
BYTES, FUSE = decoders.ByteFallback(), decoders.Fuse()


@pytest.mark.parametrize(
    ("decoder", "has_pieces"),
    [
        (decoders.Sequence([decoders.ByteLevel()]), True),
        (decoders.Sequence([REPLACE, BYTES, FUSE]), True),
        (decoders.Sequence([decoders.Sequence([REPLACE, FUSE]), decoders.Strip(" ", 1, 0)]), True),
        (decoders.Metaspace(prepend_scheme="never"), True),
        (decoders.Sequence([REPLACE, BYTES, FUSE, decoders.Strip(" ", 2, 0)]), False),
        (decoders.Sequence([REPLACE, BYTES, decoders.Strip(" ", 1, 0)]), False),
        (decoders.Sequence([FUSE, REPLACE]), False),
        (decoders.Sequence([decoders.Replace(tokenizers.Regex("▁"), " "), BYTES, FUSE]), False),
        (decoders.WordPiece(), False),
        (None, False),
    ],
    ids=str,
)
def test_every_decoder_equals_the_library(
    sentencepiece_library: tokenizers.Tokenizer, decoder: decoders.Decoder | None, has_pieces: bool
) -> None:
    library = tokenizers.Tokenizer.from_str(sentencepiece_library.to_str())
    library.decoder = decoder
    table = Tokenizer(library).token_table
    assert isinstance(table, PieceTable) == has_pieces
    token_ids = library.encode("The quick  brown fox, hello 世").ids
    if decoder is not None:
        assert stream(table, token_ids, [1], is_text_start=True) == library.decode(token_ids)
    prompt_ids = library.encode("lazy dog").ids
    before, whole = library.decode(prompt_ids), library.decode(prompt_ids + token_ids)
    assert before + stream(table, token_ids, [2, 1]) == whole


# --- Any other decoder -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["word_piece_library", "suffix_library"])
@pytest.mark.parametrize("chunk_sizes", [[1], [3], [2, 5, 0, 1]], ids=str)
def test_other_decoders_equal_the_library(request: pytest.FixtureRequest, name: str, chunk_sizes: list[int]) -> None:
    library: tokenizers.Tokenizer = request.getfixturevalue(name)
    table = Tokenizer(library).token_table
    assert isinstance(table, LibraryTable)
    prompt_ids, token_ids = library.encode("Hello there").ids, library.encode("quick dogs jumpstop! the end").ids
    whole = library.decode(prompt_ids + token_ids)
    assert library.decode(prompt_ids) + stream(table, token_ids, chunk_sizes) == whole
    assert stream(table, token_ids, chunk_sizes, is_text_start=True) == library.decode(token_ids)


@given(text=texts, chunk_sizes=sizes, cut=st.integers(0, 8), skip=st.booleans())
@PROPERTY
def test_bytes_of_an_unknown_decoder_wait_for_their_character(
    unknown_byte_library: tokenizers.Tokenizer, text: str, chunk_sizes: list[int], cut: int, skip: bool
) -> None:
    tokenizer = Tokenizer(unknown_byte_library)
    assert isinstance(tokenizer.token_table, LibraryTable)
    token_ids = tokenizer.encode(text.replace("\ufffd", ""))
    token_ids = token_ids[: len(token_ids) - cut]
    whole = unknown_byte_library.decode(token_ids, skip_special_tokens=skip).rstrip("\ufffd")
    assert stream(tokenizer.token_table, token_ids, chunk_sizes, skip_special_tokens=skip) == whole


def test_an_unknown_decoder_completes_the_prompts_character(unknown_byte_library: tokenizers.Tokenizer) -> None:
    token_ids = (tokenizer := Tokenizer(unknown_byte_library)).encode("a𝔘b")
    assert stream(tokenizer.token_table, token_ids[3:], [1], context_ids=token_ids[:3]) == "𝔘b"


def test_an_unknown_decoder_gets_a_bounded_window(unknown_byte_library: tokenizers.Tokenizer) -> None:
    """Work per token must not grow with the text, not even for endless garbage."""
    tokenizer = Tokenizer(unknown_byte_library)
    garbage = tokenizer.encode("𝔘")[:1] * 300
    lengths: list[int] = []

    def decode(token_ids: Sequence[int]) -> str:
        lengths.append(len(token_ids))
        return unknown_byte_library.decode(token_ids)

    table = tokenizer.token_table
    assert isinstance(table, LibraryTable)
    counting = LibraryTable(decode, table.known_ids, table.special_ids, table.anchor_ids)
    stream(counting, [*tokenizer.encode("Hello world " * 50), *garbage], [1])
    assert max(lengths) <= 40
