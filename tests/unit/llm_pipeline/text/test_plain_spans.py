"""Encoding with plain spans: no added token is parsed there, and everything else is as in the ordinary encoding."""

from __future__ import annotations

import itertools

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, pre_tokenizers

from llm_pipeline.text.tokenizer import Tokenizer
from tests.support.chat_template_cases import TOKENIZERS

PROPERTY = settings(max_examples=100, deadline=None, derandomize=True)
SOURCE = "<|im_start|><|im_end|><tool_call>"
LOADED = {name: Tokenizer(make(SOURCE)) for name, make in TOKENIZERS.items()}
_PIECES = st.sampled_from(
    ["<|im_start|>", "<|im_end|>", "<tool_call>", "<s>", "a", " ", "  ab", "é", "\n", "<|im_", "end|>"]
)


def _added(tokenizer: Tokenizer) -> set[int | None]:
    return {tokenizer.token_id(token) for token in (*tokenizer.special_tokens, *tokenizer.added_tokens)}


@pytest.mark.parametrize("tokenizer", LOADED.values(), ids=LOADED)
def test_a_spelling_in_a_span_is_text_and_one_outside_is_a_token(tokenizer: Tokenizer) -> None:
    text = "<|im_start|>a <|im_end|> b<|im_end|>"
    ids = tokenizer.encode_with_plain_spans(text, [(14, 24)], add_special_tokens=False)
    assert [token_id for token_id in ids if token_id in _added(tokenizer)] == [
        tokenizer.token_id("<|im_start|>"),
        tokenizer.token_id("<|im_end|>"),
    ]
    assert ids[-1] == tokenizer.token_id("<|im_end|>")


def test_the_bytes_of_a_span_are_kept() -> None:
    """One token for each byte: the ids of the span are those of its characters."""
    tokenizer = LOADED["byte level"]
    ids = tokenizer.encode_with_plain_spans("a<|im_end|>b", [(1, 11)], add_special_tokens=False)
    assert ids == [token_id for character in "a<|im_end|>b" for token_id in tokenizer.encode(character)]


def test_tokens_added_by_the_tokenizer_itself_are_kept() -> None:
    tokenizer = LOADED["sentencepiece"]
    bos = tokenizer.token_id("<s>")
    assert tokenizer.encode_with_plain_spans("<s>", [(0, 3)])[0] == bos
    assert bos not in tokenizer.encode_with_plain_spans("<s>", [(0, 3)], add_special_tokens=False)


@pytest.mark.parametrize("kind", TOKENIZERS)
@PROPERTY
@given(st.lists(_PIECES, min_size=1, max_size=10), st.lists(st.booleans(), min_size=10, max_size=10))
def test_outside_of_spans_the_ids_are_those_of_encode(kind: str, pieces: list[str], are_plain: list[bool]) -> None:
    tokenizer = LOADED[kind]
    text = "".join(pieces)
    assert tokenizer.encode_with_plain_spans(text, []) == tokenizer.encode(text)
    ends = list(itertools.accumulate(map(len, pieces)))
    spans = [(end - len(piece), end) for piece, end, is_plain in zip(pieces, ends, are_plain, strict=False) if is_plain]
    ids = tokenizer.encode_with_plain_spans(text, spans, add_special_tokens=False)
    added = _added(tokenizer)
    # In the same order as the tokens that a text without the plain parts has.
    others = "".join("é" if is_plain else piece for piece, is_plain in zip(pieces, are_plain, strict=False))
    expected = tokenizer.encode(others, add_special_tokens=False)
    assert [token_id for token_id in ids if token_id in added] == [i for i in expected if i in added]


def test_a_model_whose_vocabulary_has_the_token_whole_does_not_make_it() -> None:
    """With ignore_merges, BPE looks a word up before it splits it, and a vocabulary of a GGUF has special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate([*alphabet, "<|im_end|>"])}
    library = tokenizers.Tokenizer(models.BPE(vocabulary, [], ignore_merges=True))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.add_special_tokens([AddedToken("<|im_end|>", normalized=False, special=True)])
    tokenizer = Tokenizer(library)
    special = tokenizer.token_id("<|im_end|>")
    assert special not in tokenizer.encode_with_plain_spans("<|im_end|>", [(0, 10)])
    assert tokenizer.encode_with_plain_spans("<|im_end|><|im_end|>", [(0, 10)])[-1] == special


def test_a_unigram_model_keeps_its_ids() -> None:
    pieces = [("<unk>", 0.0), ("▁", -2.0), ("a", -1.0), ("<", -3.0), ("e", -3.0), (">", -3.0), ("<e>", -1.0)]
    library = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.add_special_tokens([AddedToken("<e>", normalized=False, special=True)])
    tokenizer = Tokenizer(library)
    assert tokenizer.encode_with_plain_spans("a<e>", []) == tokenizer.encode("a<e>")
    assert 6 not in tokenizer.encode_with_plain_spans("a<e>", [(1, 4)])
    assert tokenizer.encode_with_plain_spans("a<e>", [(1, 4)])[-3:] == [3, 4, 5]
