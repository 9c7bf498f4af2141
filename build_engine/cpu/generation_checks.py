"""Loads a CPU engine and checks its output: reference tokens for fp16, the recorded quantization error for int8."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from build_engine.artifact.checks import Check
from build_engine.artifact.tokenizer_checks import SAMPLES
from build_engine.cpu.greedy import GreedyEngine
from build_engine.cpu.quantization_error import MIN_AGREEMENT
from build_engine.cpu.reference import reference_cases
from build_engine.errors import BuildEngineError
from llm_pipeline.engine_files.manifest import Drift, EngineManifest

_GENERATED_TOKENS = 16


def check_generation(engine_dir: Path, tokenizer: Tokenizer, manifest: EngineManifest) -> list[Check]:
    """An engine that does not load is a failed check, not an exception."""
    try:
        engine = GreedyEngine.load(engine_dir)
        checks = [_check_generates(engine, tokenizer, manifest)]
        if manifest.drift:
            return [*checks, _check_quantization_error(manifest.drift)]
        cases = reference_cases(manifest.source.sha256)
        exact = [engine.generate(case.prompt_ids, len(case.greedy_ids)) == case.greedy_ids for case in cases]
    except BuildEngineError as error:
        return [Check.of("generates", False, str(error))]
    if not cases:
        return [*checks, Check.of("reference tokens", True, "no reference is known for this model")]
    round_trips = [_encode_decoded(tokenizer, case.prompt_ids) == case.prompt_ids for case in cases]
    return [
        *checks,
        Check.of("reference tokens", all(exact), f"{sum(exact)} of {len(cases)} greedy continuations equal"),
        Check.of("reference prompts", all(round_trips), f"{sum(round_trips)} of {len(cases)} keep their ids as text"),
    ]


def _check_quantization_error(error: Drift) -> Check:
    """A quantized engine does not reproduce the reference tokens; its error was measured when it was built."""
    return Check.of(
        "drift",
        error.top_token_agreement >= MIN_AGREEMENT,
        f"{error.top_token_agreement:.1%} of {error.positions} top tokens as in fp16, "
        f"perplexity x {error.perplexity_ratio}",
    )


def _check_generates(engine: GreedyEngine, tokenizer: Tokenizer, manifest: EngineManifest) -> Check:
    prompt_ids = tokenizer.encode(SAMPLES[0]).ids
    token_ids = engine.generate(prompt_ids, _GENERATED_TOKENS)
    in_range = all(token_id < manifest.limits.vocab_size for token_id in token_ids)
    return Check.of("generates", in_range, f"{SAMPLES[0]!r} is continued with {tokenizer.decode(token_ids)!r}")


def _encode_decoded(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    text = tokenizer.decode(ids, skip_special_tokens=False)
    return list(tokenizer.encode(text, add_special_tokens=False).ids)
