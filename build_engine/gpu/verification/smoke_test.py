"""Whether an engine loads and generates, on the GPUs that it is for. `build` asks before it publishes, `verify` later.

Not run on TensorRT-LLM: the calls are `upstream`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from build_engine.artifact.checks import Check
from build_engine.artifact.sample_texts import TEXTS
from build_engine.artifact.tokenizer_checks import encode_texts
from build_engine.gpu.verification.generate import Answer, Question, ask
from llm_pipeline.engine_files.manifest import TOKENIZER_NAME, EngineLimits

GENERATES = "load and generate"
NEW_TOKENS = 16


@dataclass(frozen=True)
class Texts:
    """The texts as the engine's tokenizer has them, each cut in a prompt and what follows it."""

    ids: list[list[int]]
    halves: list[int]
    new_tokens: int

    @property
    def prompts(self) -> list[list[int]]:
        return [ids[:half] for ids, half in zip(self.ids, self.halves, strict=True)]


def cut_texts(engine_dir: Path, context_length: int) -> Texts:
    """At most half of the context for tokens to come, the rest for the text."""
    new_tokens = min(NEW_TOKENS, context_length // 2)
    texts = encode_texts(engine_dir / TOKENIZER_NAME, TEXTS)
    ids = [text[: context_length - new_tokens] for text in texts if len(text) > 1]
    return Texts(ids, [max(1, len(text) // 2) for text in ids], new_tokens)


def load_and_generate(engine_dir: Path, limits: EngineLimits, tp: int, pp: int) -> Check:
    """BuildEngineError with upstream's last words when it does not load."""
    texts = cut_texts(engine_dir, limits.context_length)
    question = Question(
        path=str(engine_dir),
        is_engine=True,
        tp=tp,
        pp=pp,
        prompts=texts.prompts,
        new_tokens=texts.new_tokens,
        texts=[],
        scored_from=[],
    )
    return generation_check(ask(question), texts, limits.vocab_size)


def generation_check(answer: Answer, texts: Texts, vocab_size: int) -> Check:
    produced = [token for tokens in answer.tokens for token in tokens]
    is_whole = [len(tokens) for tokens in answer.tokens] == [texts.new_tokens] * len(texts.ids)
    is_in_range = all(0 <= token < vocab_size for token in produced)
    detail = f"{len(produced)} tokens for {len(texts.ids)} prompts"
    return Check.of(GENERATES, is_whole and is_in_range, detail if is_in_range else f"{detail}, some out of range")
