"""Guides that spell special and added tokens give their text, with each kind of tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from llm_pipeline.guides.compilers.llguidance_compiler import GuideCompiler
from llm_pipeline.protocol.messages import Guide, GuideType
from tests.support.random_walks import random_walk

SPECIAL = ["<|im_start|>", "<repo_name>", "<|end|>"]
PRINTABLE = [chr(code) for code in range(33, 127)]
CORPUS = [
    " ".join(PRINTABLE),
    'a <|im_start|> b <repo_name> {} [] : , " cut short <tool_call> x',
    "im_start|> repo_name> end",
] * 20


def byte_level() -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    library.train_from_iterator(CORPUS, trainer)
    return library


def sentencepiece_bpe() -> tokenizers.Tokenizer:
    """As in Llama 2: spaces are ▁, other bytes have tokens."""
    library = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    library.normalizer = normalizers.Replace(" ", "▁")
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=150, special_tokens=["<unk>"], initial_alphabet=PRINTABLE, show_progress=False
    )
    library.train_from_iterator(CORPUS, trainer)
    document = json.loads(library.to_str())
    vocabulary = document["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    return tokenizers.Tokenizer.from_str(json.dumps(document))


def unigram() -> tokenizers.Tokenizer:
    """As in T5 and Gemma's forerunners."""
    library = tokenizers.Tokenizer(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    library.decoder = decoders.Metaspace(prepend_scheme="never")
    trainer = trainers.UnigramTrainer(vocab_size=130, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    library.train_from_iterator(CORPUS, trainer)
    return library


@pytest.fixture(scope="module", params=[byte_level, sentencepiece_bpe, unigram], ids=lambda make: make.__name__)
def library(request: pytest.FixtureRequest) -> tokenizers.Tokenizer:
    library: tokenizers.Tokenizer = request.param()
    library.add_tokens(["<tool_call>"])
    library.add_special_tokens(SPECIAL)
    return library


@pytest.fixture(scope="module")
def compiler(library: tokenizers.Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> GuideCompiler:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    library.save(str(path))
    return GuideCompiler(Path(path), vocab_size=library.get_vocab_size(), end_id=end_of(library))


def end_of(library: tokenizers.Tokenizer) -> int:
    end = library.token_to_id("<|end|>")
    assert end is not None
    return end


def schema(value: object) -> Guide:
    return Guide(GuideType.JSON_SCHEMA, json.dumps(value))


TEXTS = ["a<|im_start|>b", "<repo_name>", "cut <|im_start|><repo_name> short", "<tool_call>x", "<|end|>"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("form", ["choice", "const", "enum", "pattern", "name", "grammar"])
def test_the_text_of_a_special_token_is_written_whole(
    text: str, form: str, compiler: GuideCompiler, library: tokenizers.Tokenizer
) -> None:
    escaped = text.replace("|", r"\|")
    guides = {
        "choice": (Guide(GuideType.REGEX, escaped), text),
        "const": (schema({"const": text}), json.dumps(text)),
        "enum": (schema({"enum": [text]}), json.dumps(text)),
        "pattern": (schema({"type": "string", "pattern": f"^{escaped}$"}), json.dumps(text)),
        "name": (
            schema(
                {
                    "properties": {text: {"const": 1}},
                    "required": [text],
                    "additionalProperties": False,
                    "type": "object",
                }
            ),
            json.dumps({text: 1}),
        ),
        "grammar": (Guide(GuideType.EBNF_GRAMMAR, f"start: {json.dumps(text)}"), text),
    }
    guide, expected = guides[form]
    end = end_of(library)
    for seed in range(3):
        assert random_walk(compiler, library, guide, seed, end) == expected


def test_no_mask_allows_a_special_token_in_place_of_its_text(
    compiler: GuideCompiler, library: tokenizers.Tokenizer
) -> None:
    for guide in (Guide(GuideType.REGEX, r"<\|im_start\|>x"), Guide(GuideType.REGEX, "(?s:.*)"), schema({})):
        (row,) = compiler.compile(guide).masks()
        mask = np.unpackbits(np.frombuffer(row, np.uint8), bitorder="little")
        assert not any(mask[library.token_to_id(token)] for token in ("<|im_start|>", "<repo_name>"))
