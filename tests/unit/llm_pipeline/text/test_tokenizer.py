"""The tokenizer: loading, token ids of prompts, and the bounds that validation relies on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from llm_pipeline.text.tokenizer import Tokenizer, TokenizerError

PROPERTY = settings(max_examples=200, deadline=None, derandomize=True)


def test_a_missing_file_is_named_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"absent\.json is missing\. Copy"):
        Tokenizer.load(tmp_path / "absent.json")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": 1}'], ids=["empty", "cut", "list", "wrong"])
def test_a_corrupt_file_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json can't be read"):
        Tokenizer.load(path)


def test_a_saved_tokenizer_loads(tmp_path: Path, byte_level_library: tokenizers.Tokenizer) -> None:
    path = tmp_path / "tokenizer.json"
    byte_level_library.save(str(path))
    assert Tokenizer.load(path).encode("Hello 你好") == byte_level_library.encode("Hello 你好").ids


def test_special_tokens_in_a_prompt_are_parsed(byte_level: Tokenizer) -> None:
    assert byte_level.encode("<|im_start|>")[0] in byte_level.special_ids
    assert len(byte_level.encode("<|im_start|>")) == 1


def test_no_bos_is_added_without_a_post_processor(byte_level: Tokenizer) -> None:
    assert byte_level.special_ids.isdisjoint(byte_level.encode("Hello"))


def test_a_post_processor_adds_its_bos(padded_library: tokenizers.Tokenizer) -> None:
    assert Tokenizer(padded_library).encode("ab") == [2, 0, 1]


def test_prompts_are_neither_truncated_nor_padded(padded_library: tokenizers.Tokenizer) -> None:
    """tokenizer.json may still have the truncation and padding of the training."""
    assert len(Tokenizer(padded_library).encode("ab" * 50)) == 101


def test_vocab_size_counts_added_tokens(byte_level: Tokenizer, byte_level_library: tokenizers.Tokenizer) -> None:
    assert byte_level.vocab_size == byte_level_library.get_vocab_size(with_added_tokens=True)


def test_only_special_added_tokens_are_special(byte_level: Tokenizer, byte_level_library: tokenizers.Tokenizer) -> None:
    names = {byte_level_library.id_to_token(token_id) for token_id in byte_level.special_ids}
    assert names == {"<|endoftext|>", "<|im_start|>", "<｜begin▁of▁text｜>"}


def test_max_token_bytes_is_the_longest_token(byte_level: Tokenizer) -> None:
    assert byte_level.max_token_bytes == len("<｜begin▁of▁text｜>".encode())


@given(text=st.text() | st.text(alphabet=" aé世😀").map(lambda text: text * 20))
@PROPERTY
def test_min_token_count_is_a_lower_bound_for_byte_level(byte_level: Tokenizer, text: str) -> None:
    assert byte_level.min_token_count(text) <= len(byte_level.encode(text))


@given(text=st.text())
@PROPERTY
def test_min_token_count_is_a_lower_bound_with_byte_tokens(sentencepiece: Tokenizer, text: str) -> None:
    assert sentencepiece.min_token_count(text) <= len(sentencepiece.encode(text))


def test_min_token_count_grows_with_the_text(byte_level: Tokenizer, sentencepiece: Tokenizer) -> None:
    """A bound that is always 0 would be correct, too, but useless."""
    assert byte_level.min_token_count("a" * 4_000_000) > 100_000
    assert sentencepiece.min_token_count("a" * 4_000_000) > 100_000


def test_bytes_without_a_token_do_not_count() -> None:
    """Some byte-level vocabularies lack bytes, which encode drops silently."""
    library = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(library)
    assert tokenizer.encode("世" * 100 + "aa") == [0, 0]
    assert tokenizer.min_token_count("世" * 100 + "aa") == 2


def _shortening(library: tokenizers.Tokenizer) -> None:
    library.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.NFC()])


def _absorbing_spaces(library: tokenizers.Tokenizer) -> None:
    library.add_special_tokens([AddedToken("<mask>", lstrip=True)])


def _removing_spaces(library: tokenizers.Tokenizer) -> None:
    split = pre_tokenizers.Split(" ", "removed")
    library.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel()])


@pytest.mark.parametrize("change", [_shortening, _absorbing_spaces, _removing_spaces])
def test_there_is_no_bound_if_text_may_be_dropped(
    byte_level_library: tokenizers.Tokenizer, change: Callable[[tokenizers.Tokenizer], None]
) -> None:
    """By a normalizer that shortens text, a token that absorbs spaces, or a pre-tokenizer that removes text."""
    library = tokenizers.Tokenizer.from_str(byte_level_library.to_str())
    change(library)
    assert Tokenizer(library).min_token_count(" " * 10_000) == 0


def test_there_is_no_bound_if_one_unknown_token_covers_a_word(word_piece_library: tokenizers.Tokenizer) -> None:
    assert Tokenizer(word_piece_library).min_token_count("世" * 1000) == 0
