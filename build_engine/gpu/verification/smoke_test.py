"""Loads an engine on its GPUs and generates a few tokens. `build` runs it before it publishes, `verify` at any time.

Tested with a stand-in for TensorRT-LLM only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from build_engine.artifact.checks import Check
from build_engine.artifact.sample_texts import TEXTS
from build_engine.artifact.tokenizer_checks import encode_texts
from build_engine.gpu.verification.generate import GenerateRequest, GenerateResponse, generate
from llm_pipeline.engine_files.manifest import TOKENIZER_NAME, EngineLimits

GENERATES = "load and generate"
NEW_TOKENS = 16


@dataclass(frozen=True)
class SplitTexts:
    """The sample texts as token ids, each split into a prompt and a continuation."""

    ids: list[list[int]]
    prompt_lengths: list[int]
    new_tokens: int  # to generate per prompt

    @property
    def prompts(self) -> list[list[int]]:
        return [ids[:length] for ids, length in zip(self.ids, self.prompt_lengths, strict=True)]


def split_texts(engine_dir: Path, context_length: int) -> SplitTexts:
    """Encodes the sample texts with the engine's tokenizer; at most half of the context is left for new tokens."""
    new_tokens = min(NEW_TOKENS, context_length // 2)
    texts = encode_texts(engine_dir / TOKENIZER_NAME, TEXTS)
    ids = [text[: context_length - new_tokens] for text in texts if len(text) > 1]
    return SplitTexts(ids, [max(1, len(text) // 2) for text in ids], new_tokens)


def smoke_test(engine_dir: Path, limits: EngineLimits, tp: int, pp: int) -> Check:
    """Raises BuildEngineError with the end of upstream's output if the engine does not load."""
    texts = split_texts(engine_dir, limits.context_length)
    request = GenerateRequest(
        path=str(engine_dir),
        is_engine=True,
        tp=tp,
        pp=pp,
        prompts=texts.prompts,
        new_tokens=texts.new_tokens,
        texts=[],
        scored_from=[],
    )
    return check_generated(generate(request), texts, limits.vocab_size)


def check_generated(response: GenerateResponse, texts: SplitTexts, vocab_size: int) -> Check:
    """Passes if every prompt has all of its new tokens and each id is below `vocab_size`."""
    token_ids = [token_id for tokens in response.tokens for token_id in tokens]
    is_complete = [len(tokens) for tokens in response.tokens] == [texts.new_tokens] * len(texts.ids)
    is_in_range = all(0 <= token_id < vocab_size for token_id in token_ids)
    detail = f"{len(token_ids)} tokens for {len(texts.ids)} prompts"
    return Check.of(GENERATES, is_complete and is_in_range, detail if is_in_range else f"{detail}, some out of range")
