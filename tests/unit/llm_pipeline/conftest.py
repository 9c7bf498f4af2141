"""Tiny real tokenizers, one per kind of decoder."""

from __future__ import annotations

import json

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from llm_pipeline.text.tokenizer import Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Hello world, hello there!",
    "Stop strings begin and end inside tokens; they span tokens too.",
    "你好,世界。こんにちは世界 안녕하세요 привет мир 😀😀 naïve café",
]


@pytest.fixture(scope="session")
def byte_level_library() -> tokenizers.Tokenizer:
    """GPT-2 style, with three special tokens, one ordinary added token, and one that is not in the byte alphabet."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<｜begin▁of▁text｜>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(CORPUS, trainer)
    library.add_tokens(["<tool call>", "  \n"])
    return library


@pytest.fixture(scope="session")
def byte_level(byte_level_library: tokenizers.Tokenizer) -> Tokenizer:
    return Tokenizer(byte_level_library)


@pytest.fixture(scope="session")
def sentencepiece_library() -> tokenizers.Tokenizer:
    """Llama 2 style: BPE with byte tokens, and a decoder that strips the first space."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens], show_progress=False
    )
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.train_from_iterator(CORPUS[:2], trainer)
    trained.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    settings = json.loads(trained.to_str())
    settings["added_tokens"] = settings["added_tokens"][:3]  # byte tokens are ordinary ones
    settings["model"]["byte_fallback"] = True
    return tokenizers.Tokenizer.from_str(json.dumps(settings))


@pytest.fixture(scope="session")
def sentencepiece(sentencepiece_library: tokenizers.Tokenizer) -> Tokenizer:
    return Tokenizer(sentencepiece_library)


@pytest.fixture(scope="session")
def metaspace_library() -> tokenizers.Tokenizer:
    """T5 style: Unigram, Metaspace on both sides."""
    library = tokenizers.Tokenizer(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["<unk>", "<s>"], unk_token="<unk>", show_progress=False
    )
    library.train_from_iterator(CORPUS, trainer)
    return library


@pytest.fixture(scope="session")
def word_piece_library() -> tokenizers.Tokenizer:
    """BERT style: a decoder without a table, which the library decodes."""
    library = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]", "[CLS]"], show_progress=False)
    library.train_from_iterator(CORPUS[:2], trainer)
    return library


@pytest.fixture(scope="session")
def suffix_library() -> tokenizers.Tokenizer:
    """GPT-1 style: BPE that marks the end of a word, decoded by the library."""
    library = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=150, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    library.train_from_iterator(CORPUS[:2], trainer)
    return library


@pytest.fixture(scope="session")
def unknown_byte_library(byte_level_library: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The byte-level tokenizer with an unknown sequence of decoders."""
    library = tokenizers.Tokenizer.from_str(byte_level_library.to_str())
    library.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("\r\n", "\n")])
    return library


@pytest.fixture(scope="session")
def padded_library() -> tokenizers.Tokenizer:
    """Two letters, a BOS by post-processor, and settings left over from training: padding and truncation."""
    library = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    library.add_special_tokens([AddedToken("<s>", special=True)])
    library.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    library.enable_truncation(4)
    library.enable_padding(length=4)
    return library
