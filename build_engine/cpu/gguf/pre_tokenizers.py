"""Pre-tokenizers for byte-level BPE: how text is split before merges apply, by the name in `tokenizer.ggml.pre`.

Names and patterns are from llama.cpp's table (src/llama-vocab.cpp), their form from the models' own tokenizer.json. An
unknown name is rejected, since a wrong split gives valid but wrong token ids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

from build_engine.errors import EngineRefusedError

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"


@dataclass(frozen=True)
class PreTokenization:
    build: Callable[[], PreTokenizer]
    normalizer: Callable[[], NFC] | None = None
    ignore_merges: bool = False  # a split that is a token itself is not merged from its parts
    add_bos: bool = False  # llama.cpp's default if the file does not set it


def _gpt2() -> PreTokenizer:
    return ByteLevel(add_prefix_space=False, use_regex=True)


def _digits_then_gpt2() -> PreTokenizer:
    return Sequence([Digits(individual_digits=True), _gpt2()])


def _splits(*patterns: str) -> PreTokenizer:
    splits: list[PreTokenizer] = [Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    return Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])


def _llama3() -> PreTokenizer:
    return _splits(_WORDS % "{1,3}")


def _qwen2() -> PreTokenizer:
    return _splits(_WORDS % "")


def _llama_cpp_default() -> PreTokenizer:
    return _splits(r"[\p{P}\$\+<=>\^~\|]+", _GPT2_WORDS, r"\p{N}+", "[0-9][0-9][0-9]")


_LLAMA3 = PreTokenization(_llama3, ignore_merges=True, add_bos=True)
_GPT2 = PreTokenization(_gpt2)
_DIGITS = PreTokenization(_digits_then_gpt2)
# llama.cpp has several names for one pre-tokenizer, often one for each family of models.
PRE_TOKENIZERS = {
    "default": PreTokenization(_llama_cpp_default),
    **dict.fromkeys(("gpt-2", "phi-2", "a.x-4.0", "gigachat", "mellum", "mpt", "olmo", "jais", "trillion"), _GPT2),
    **dict.fromkeys(("jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "modern-bert", "exaone4"), _GPT2),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "lfm2"), _LLAMA3),
    **dict.fromkeys(("falcon-h1", "jina-v5-nano"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), PreTokenization(_llama3)),
    "qwen2": PreTokenization(_qwen2, normalizer=NFC),
    # Without the normalizer of Qwen's own tokenizer.json: llama.cpp never normalizes.
    **dict.fromkeys(
        ("deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "grok-2", "solar-open"),
        PreTokenization(_qwen2),
    ),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS),
}


def find_pre_tokenization(name: str) -> PreTokenization:
    """Raises EngineRefusedError with the known names if there is no such pre-tokenizer."""
    try:
        return PRE_TOKENIZERS[name]
    except KeyError:
        known = ", ".join(PRE_TOKENIZERS)
        raise EngineRefusedError(
            f"Unknown pre-tokenizer {name!r} (tokenizer.ggml.pre): splitting the text by other rules would give wrong "
            "tokens. Use the model's Hugging Face directory, whose tokenizer.json has the rules, or a GGUF file with "
            f"one of {known}."
        ) from None
