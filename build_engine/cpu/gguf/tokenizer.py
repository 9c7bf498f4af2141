"""Builds a `tokenizers.Tokenizer` from the vocabulary, merges, token types and pre-tokenizer name of a GGUF file.

Supports byte-level BPE (`tokenizer.ggml.model` gpt2) and SentencePiece BPE (llama). Does not use transformers, whose
GGUF conversion is wrong for SmolLM2 ("Hello" becomes [1, 0, 19556]).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE

from build_engine.cpu.gguf.pre_tokenizers import find_pre_tokenization
from build_engine.errors import EngineRefusedError

_SPACE = "\u2581"  # SentencePiece's space


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`, from llama.cpp's llama_token_type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class GgufVocabulary:
    """The tokenizer's tables as they are in the file."""

    model: str  # gpt2 or llama
    pre: str  # name of the pre-tokenizer; "default" if unset
    tokens: list[str]  # by id
    token_types: list[int]  # by id; empty if the file has none
    merges: list[str]  # "left right", best first
    scores: list[float]  # by id, SentencePiece only
    bos: int | None
    eos: tuple[int, ...]
    unknown: int | None
    add_bos: bool | None  # None: unset
    add_space_prefix: bool  # SentencePiece only

    @property
    def adds_bos(self) -> bool:
        """Whether prompts start with the bos token. If unset in the file, llama.cpp's default."""
        if self.bos is None:
            return False
        if self.add_bos is not None:
            return self.add_bos
        return self.model == "llama" or find_pre_tokenization(self.pre).add_bos


def build_tokenizer(vocabulary: GgufVocabulary) -> Tokenizer:
    """A tokenizer with the model's own ids. Raises EngineRefusedError for tables that it can't represent exactly."""
    _require_consistent(vocabulary)
    builders = {"gpt2": _byte_level, "llama": _sentence_piece}
    if vocabulary.model not in builders:
        raise EngineRefusedError(
            f"Unknown tokenizer model {vocabulary.model!r}. Use a model with one of {', '.join(builders)}."
        )
    tokenizer = builders[vocabulary.model](vocabulary)
    _add_special_tokens(tokenizer, vocabulary)
    if vocabulary.adds_bos:
        tokenizer.post_processor = _bos_first(vocabulary)
    return tokenizer


def _require_consistent(vocabulary: GgufVocabulary) -> None:
    count = len(vocabulary.tokens)
    if len(set(vocabulary.tokens)) != count:
        raise EngineRefusedError("The vocabulary contains the same token twice. Convert the model again.")
    for name, table in (("token_type", vocabulary.token_types), ("scores", vocabulary.scores)):
        if table and len(table) != count:
            raise EngineRefusedError(
                f"tokenizer.ggml.{name} has {len(table)} entries for {count} tokens. Convert the model again."
            )
    special = [token for token in (vocabulary.bos, vocabulary.unknown, *vocabulary.eos) if token is not None]
    if invalid := [token for token in special if not 0 <= token < count]:
        raise EngineRefusedError(
            f"Special token id {invalid[0]} is outside the vocabulary of {count} tokens. Convert the model again."
        )


def _byte_level(vocabulary: GgufVocabulary) -> Tokenizer:
    rules = find_pre_tokenization(vocabulary.pre)
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    # No unk_token: a byte without a token is dropped, as by llama.cpp and the model's own tokenizer.
    tokenizer = Tokenizer(BPE(ids, _merge_pairs(vocabulary.merges, ids), ignore_merges=rules.ignore_merges))
    if rules.normalizer:
        tokenizer.normalizer = rules.normalizer()
    tokenizer.pre_tokenizer = rules.build()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _merge_pairs(merges: list[str], ids: dict[str, int]) -> list[tuple[str, str]]:
    if not merges:
        raise EngineRefusedError("A byte-level vocabulary needs tokenizer.ggml.merges.")
    pairs = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not (left in ids and right in ids and left + right in ids):
            raise EngineRefusedError(
                f"tokenizer.ggml.merges contains {merge!r}, which does not merge two tokens into a third. "
                "Convert the model again."
            )
        pairs.append((left, right))
    return pairs


def _sentence_piece(vocabulary: GgufVocabulary) -> Tokenizer:
    """BPE over characters with merges ranked by score and byte fallback, like the `tokenizers` form of Llama 2.

    The space prefix is repeated after every special token, as by Llama 2's tokenizer and llama.cpp.
    """
    if not vocabulary.scores or not vocabulary.token_types:
        raise EngineRefusedError("A SentencePiece vocabulary needs tokenizer.ggml.scores and token_type.")
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    unknown = None if vocabulary.unknown is None else vocabulary.tokens[vocabulary.unknown]
    model = BPE(ids, _merges_from_scores(vocabulary), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", _SPACE)]
    undo: list[decoders.Decoder] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.add_space_prefix:
        steps.insert(0, normalizers.Prepend(_SPACE))
        undo.append(decoders.Strip(content=" ", left=1))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(undo)
    return tokenizer


def _merges_from_scores(vocabulary: GgufVocabulary) -> list[tuple[str, str]]:
    """Every pair of tokens that concatenates to another token, best score first.

    SentencePiece has no merges: it joins the neighbours whose concatenation has the best score. Ties go to the longer
    left part, then the longer right part, as in transformers' `generate_merges`.
    """
    plain = {TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED}
    ids = {token: index for index, token in enumerate(vocabulary.tokens) if vocabulary.token_types[index] in plain}
    merges: list[tuple[float, str, str]] = []
    for token, index in ids.items():
        splits = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs = [(left, right) for left, right in splits if left in ids and right in ids]
        merges += [
            (vocabulary.scores[index], *pair) for pair in sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        ]
    merges.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(left, right) for _, left, right in merges]


def _add_special_tokens(tokenizer: Tokenizer, vocabulary: GgufVocabulary) -> None:
    """Adds the tokens that are never split. Decoding can skip the special ones."""
    kinds = vocabulary.token_types
    special = {TokenType.CONTROL, TokenType.UNKNOWN}
    tokens = list(zip(vocabulary.tokens, kinds, strict=False))
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token, kind in tokens if kind in special]
    )
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False) for token, kind in tokens if kind == TokenType.USER_DEFINED]
    )


def _bos_first(vocabulary: GgufVocabulary) -> processors.TemplateProcessing:
    assert vocabulary.bos is not None  # adds_bos
    bos = vocabulary.tokens[vocabulary.bos]
    return processors.TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", bos, "$B"], special_tokens=[(bos, vocabulary.bos)]
    )
