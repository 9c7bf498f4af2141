"""Tokenizers built from GGUF tables: ids, pre-tokenizers, special tokens and SentencePiece."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from build_engine.cpu.default_model import find_default_model
from build_engine.cpu.gguf.gguf_model import GgufModel
from build_engine.cpu.gguf.pre_tokenizers import PRE_TOKENIZERS
from build_engine.cpu.gguf.tokenizer import GgufVocabulary, build_tokenizer
from build_engine.cpu.reference import reference_cases
from build_engine.errors import EngineRefusedError
from llm_pipeline.engine_files.manifest import sha256_of
from tests.support.tiny_models import MERGES, SPECIAL, TOKENS, TYPES

TINY = GgufVocabulary(
    model="gpt2",
    pre="smollm",
    tokens=TOKENS,
    token_types=TYPES,
    merges=MERGES,
    scores=[],
    bos=1,
    eos=(2,),
    unknown=0,
    add_bos=False,
    add_space_prefix=False,
)
SENTENCE_PIECE_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
SENTENCE_PIECE_TOKENS += ["▁a", "ab", "▁ab", "▁", "a", "b", "c", "<tool>"]
SENTENCE_PIECE = replace(
    TINY,
    model="llama",
    pre="default",
    tokens=SENTENCE_PIECE_TOKENS,
    token_types=[2, 3, 3, *[6] * 256, *[1] * 7, 4],
    scores=[0.0] * 259 + [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0, 0.0],
    merges=[],
    add_bos=None,
    add_space_prefix=True,
)


@pytest.fixture(scope="module")
def smollm() -> Tokenizer:
    return build_tokenizer(GgufModel(find_default_model().path).vocabulary())


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return list(tokenizer.encode(text).tokens)


def test_the_default_model_splits_hello_into_its_own_token(smollm: Tokenizer) -> None:
    """The conversion of transformers gives [1, 0, 19556]."""
    assert smollm.encode("Hello").ids == [19556]
    assert smollm.decode([19556, 905]) == "Hello world"


def test_reference_prompts_keep_their_ids_when_decoded_and_encoded(smollm: Tokenizer) -> None:
    cases = reference_cases(sha256_of(find_default_model().path))
    assert cases
    for case in cases:
        text = smollm.decode(case.prompt_ids, skip_special_tokens=False)
        assert smollm.encode(text, add_special_tokens=False).ids == case.prompt_ids


def _encodable() -> st.SearchStrategy[str]:
    """Text whose bytes all have a token: SmolLM2 lacks six control characters and the planes of F1 and F2."""
    alphabet = st.characters(
        exclude_categories=["Cs"], exclude_characters="\x04\x06\x13\x14\x16\x1d", max_codepoint=0x3FFFF
    )
    return st.text(alphabet)


@settings(max_examples=300, deadline=None)
@given(text=_encodable())
def test_any_text_round_trips(smollm: Tokenizer, text: str) -> None:
    ids = smollm.encode(text, add_special_tokens=False).ids
    assert smollm.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("smollm", [["1"], ["2"], ["3"], ["4"]]),
        ("starcoder", [["1"], ["2"], ["3"], ["4"]]),
        ("qwen2", [["1"], ["2"], ["3"], ["4"]]),
        ("gpt-2", [["1234"]]),
        ("llama-bpe", [["123"], ["4"]]),
        ("default", [["123"], ["4"]]),
    ],
)
def test_digits_are_split_by_the_pre_tokenizers_rule(pre: str, expected: list[list[str]]) -> None:
    split = PRE_TOKENIZERS[pre].build().pre_tokenize_str("1234")
    assert [[word] for word, _ in split] == expected


@pytest.mark.parametrize("pre", ["smollm", "starcoder", "gpt-2"])
def test_a_space_stays_with_the_word_after_it(pre: str) -> None:
    split = PRE_TOKENIZERS[pre].build().pre_tokenize_str("it's  two words")
    assert [word for word, _ in split] == ["it", "'s", "Ġ", "Ġtwo", "Ġwords"]


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_pre_tokenizer_loses_no_text(pre: str) -> None:
    tokenizer = build_tokenizer(replace(TINY, pre=pre))
    text = "hello  world's 12345\n\n  \tdef f(x): # 🙂 Grüße…"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("falcon3", "llama-bpe"),
        ("jina-v5-nano", "llama-bpe"),
        ("exaone4", "gpt-2"),
        ("f2llmv2", "qwen2"),
        ("llama-v3", "llama-bpe"),
        ("deepseek-r1-qwen", "qwen2"),
        ("megrez", "qwen2"),
        ("mellum", "gpt-2"),
        ("olmo", "gpt-2"),
        ("refact", "smollm"),
        ("minerva-7b", "smollm"),
        ("smaug-bpe", "llama-bpe"),
    ],
)
def test_another_name_of_a_pre_tokenizer_splits_like_it(alias: str, name: str) -> None:
    text = "It's 12345  words\n\n\tdef f(x): # 🙂 Grüße"
    split = [PRE_TOKENIZERS[pre].build().pre_tokenize_str(text) for pre in (alias, name)]
    assert split[0] == split[1]


@pytest.mark.parametrize(("pre", "adds"), [("falcon3", True), ("smaug-bpe", False)])
def test_another_name_may_have_another_default_for_bos(pre: str, adds: bool) -> None:
    """llama.cpp splits smaug-bpe like llama-bpe, but adds no bos token and applies all merges."""
    assert replace(TINY, pre=pre, add_bos=None).adds_bos is adds
    assert PRE_TOKENIZERS[pre].ignore_merges is adds


def test_an_unknown_pre_tokenizer_is_refused_by_name() -> None:
    with pytest.raises(EngineRefusedError, match=r"'tekken'.*Hugging Face directory.*one of .*smollm"):
        build_tokenizer(replace(TINY, pre="tekken"))


def test_an_unknown_tokenizer_model_is_refused_by_name() -> None:
    with pytest.raises(EngineRefusedError, match=r"'t5'.*gpt2, llama"):
        build_tokenizer(replace(TINY, model="t5"))


def test_merges_apply_best_first() -> None:
    assert pieces(build_tokenizer(TINY), "hello") == ["hello"]
    assert pieces(build_tokenizer(TINY), "help") == ["he", "l", "p"]


def test_control_tokens_are_encoded_and_skipped_when_decoding() -> None:
    tokenizer = build_tokenizer(TINY)
    ids = tokenizer.encode("<|start|>hello<|end|>").ids
    assert ids == [1, TOKENS.index("hello"), 2]
    assert tokenizer.decode(ids) == "hello"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|start|>hello<|end|>"


def test_special_tokens_keep_their_ids() -> None:
    tokenizer = build_tokenizer(TINY)
    assert [tokenizer.token_to_id(token) for token in SPECIAL] == [0, 1, 2]
    assert tokenizer.get_vocab_size() == len(TOKENS)


def test_bos_is_added_only_if_the_file_sets_it() -> None:
    assert build_tokenizer(TINY).encode("he").ids == [TOKENS.index("he")]
    assert build_tokenizer(replace(TINY, add_bos=True)).encode("he").ids == [1, TOKENS.index("he")]


@pytest.mark.parametrize(("pre", "adds"), [("smollm", False), ("llama-bpe", True)])
def test_an_unset_add_bos_has_the_default_of_llama_cpp(pre: str, adds: bool) -> None:
    assert replace(TINY, pre=pre, add_bos=None).adds_bos is adds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": [*TOKENS[:-1], TOKENS[0]]}, "same token twice"),
        ({"token_types": [1]}, "has 1 entries"),
        ({"bos": len(TOKENS)}, "outside the vocabulary"),
        ({"merges": []}, "needs tokenizer.ggml.merges"),
        ({"merges": ["q q"]}, "'q q'"),
        ({"model": "llama"}, "needs tokenizer.ggml.scores"),
    ],
    ids=["duplicate", "short-table", "bad-bos", "no-merges", "bad-merge", "no-scores"],
)
def test_inconsistent_tables_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(EngineRefusedError, match=message):
        build_tokenizer(replace(TINY, **change))  # type: ignore[arg-type]


def test_sentence_piece_merges_the_pair_with_the_best_score() -> None:
    """In "ab" after a space both "▁a" and "ab" are possible; "▁a" has the better score, and "▁ab" is then merged."""
    assert pieces(build_tokenizer(SENTENCE_PIECE), "ab c") == ["<s>", "▁ab", "▁", "c"]
    assert pieces(build_tokenizer(SENTENCE_PIECE), "aab") == ["<s>", "▁a", "ab"]


def test_sentence_piece_writes_unknown_characters_as_bytes() -> None:
    assert pieces(build_tokenizer(SENTENCE_PIECE), "é") == ["<s>", "▁", "<0xC3>", "<0xA9>"]


@pytest.mark.parametrize("text", ["ab c", " ab", "a  b", "é🙂\n", "ab<tool>", ""])
def test_sentence_piece_text_round_trips(text: str) -> None:
    tokenizer = build_tokenizer(SENTENCE_PIECE)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_sentence_piece_without_space_prefix_adds_none() -> None:
    tokenizer = build_tokenizer(replace(SENTENCE_PIECE, add_space_prefix=False))
    assert pieces(tokenizer, "ab") == ["<s>", "ab"]
    assert tokenizer.decode(tokenizer.encode(" ab").ids) == " ab"


def test_serialization_is_deterministic() -> None:
    assert build_tokenizer(TINY).to_str() == build_tokenizer(TINY).to_str()
