"""Checks a finished engine directory: its files, its tokenizer, that it generates, and what it generates.

An engine for GPUs is checked here as far as any machine can; what only its target can show is gpu.gpu_verify's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from build_engine.artifact.checks import Check
from build_engine.cpu.greedy import GreedyEngine
from build_engine.cpu.quantization_error import LEAST_AGREEMENT
from build_engine.cpu.reference import reference_cases
from build_engine.errors import BuildEngineError
from build_engine.gpu.verification.config_checks import config_checks
from build_engine.progress import BuildProgress
from build_engine.targets import CPU
from llm_pipeline.engine_files.manifest import (
    MANIFEST_NAME,
    TOKENIZER_NAME,
    Drift,
    EngineManifest,
    ManifestError,
    sha256_of,
)

SAMPLES = (
    "Hello",
    " two  spaces, a tab\tand\nnew lines\n\n",
    "In 2024 there were 1,234 of 56789.",
    "Grüße aus Köln, Привет, 你好, مرحبا",
    "def f(x):\n    return x ** 2  # 🙂",
)
_GENERATED_TOKENS = 16


def verify_engine(engine_dir: Path, progress: BuildProgress) -> list[Check]:
    """The checks that any machine can make, in order. Damaged files are not loaded, engines for GPUs never."""
    try:
        manifest = EngineManifest.load(engine_dir)
    except ManifestError as error:
        return [Check.of(MANIFEST_NAME, False, str(error))]
    checks = [Check.of(MANIFEST_NAME, True, f"{manifest.model_name}, {manifest.target} {manifest.precision}")]
    with progress.step("hash the files"):
        checks += _file_checks(engine_dir, manifest)
    if any(check.failed for check in checks):
        return checks
    with progress.step("check the tokenizer"):
        tokenizer = Tokenizer.from_file(str(engine_dir / TOKENIZER_NAME))
        checks += _tokenizer_checks(tokenizer, manifest)
    if manifest.target != CPU.name:
        return checks + config_checks(engine_dir, manifest)
    with progress.step("load the engine and generate"):
        checks += _generation_checks(engine_dir, tokenizer, manifest)
    return checks


def file_problems(engine_dir: Path, manifest: EngineManifest) -> list[str]:
    """What is wrong with the files, one sentence each; empty when all are as they were built."""
    checks = _file_checks(engine_dir, manifest)
    return [f"{check.name} {check.detail}" for check in checks if check.failed]


def _file_checks(engine_dir: Path, manifest: EngineManifest) -> list[Check]:
    checks = [_file_check(engine_dir, name, manifest) for name in sorted(manifest.files)]
    expected = {*manifest.files, MANIFEST_NAME}
    found = sorted(str(path.relative_to(engine_dir)) for path in engine_dir.rglob("*") if not path.is_dir())
    return checks + [Check.of(name, False, "is no part of the engine") for name in found if name not in expected]


def _file_check(engine_dir: Path, name: str, manifest: EngineManifest) -> Check:
    path, expected = engine_dir / name, manifest.files[name]
    if not path.is_file():
        return Check.of(name, False, "is missing")
    if (size := path.stat().st_size) != expected.size_bytes:
        return Check.of(name, False, f"has {size} bytes instead of {expected.size_bytes}")
    if sha256_of(path) != expected.sha256:
        return Check.of(name, False, "has been changed: its sha256 differs from the manifest")
    return Check.of(name, True, f"{expected.size_bytes} bytes, sha256 {expected.sha256[:12]}")


def _tokenizer_checks(tokenizer: Tokenizer, manifest: EngineManifest) -> Iterator[Check]:
    size, rows = tokenizer.get_vocab_size(), manifest.limits.vocab_size
    yield Check.of("tokenizer size", size <= rows, f"{size} tokens, {rows} rows in the output matrix")
    wrong = [text for text in SAMPLES if _round_trip(tokenizer, text) != text]
    detail = f"{wrong[0]!r} comes back as {_round_trip(tokenizer, wrong[0])!r}" if wrong else f"{len(SAMPLES)} texts"
    yield Check.of("tokenizer round trip", not wrong, detail)


def ids_added_to_any_text(tokenizer_path: Path) -> list[int]:
    """What the tokenizer itself puts around a text, such as a beginning-of-text token."""
    return list(Tokenizer.from_file(str(tokenizer_path)).encode("").ids)


def encode(tokenizer_path: Path, texts: Sequence[str]) -> list[list[int]]:
    """Token ids as the model is given them, with what the tokenizer adds to any text."""
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    return [list(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]


def _round_trip(tokenizer: Tokenizer, text: str) -> str:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def _generation_checks(engine_dir: Path, tokenizer: Tokenizer, manifest: EngineManifest) -> list[Check]:
    try:
        engine = GreedyEngine.load(engine_dir)
        checks = [_generates(engine, tokenizer, manifest)]
        if manifest.drift:
            return [*checks, _drift_check(manifest.drift)]
        cases = reference_cases(manifest.source.sha256)
        exact = [engine.generate(case.prompt_ids, len(case.greedy_ids)) == case.greedy_ids for case in cases]
    except BuildEngineError as error:
        return [Check.of("generates", False, str(error))]
    if not cases:
        return [*checks, Check.of("reference tokens", True, "no reference is known for this model")]
    again = [_encode_decoded(tokenizer, case.prompt_ids) == case.prompt_ids for case in cases]
    return [
        *checks,
        Check.of("reference tokens", all(exact), f"{sum(exact)} of {len(cases)} greedy continuations equal"),
        Check.of("reference prompts", all(again), f"{sum(again)} of {len(cases)} keep their ids through text"),
    ]


def _drift_check(drift: Drift) -> Check:
    """A quantised engine is not the reference; what it lost was measured when it was built."""
    return Check.of(
        "drift",
        drift.top_token_agreement >= LEAST_AGREEMENT,
        f"{drift.top_token_agreement:.1%} of {drift.positions} top tokens as in fp16, "
        f"perplexity x {drift.perplexity_ratio}",
    )


def _generates(engine: GreedyEngine, tokenizer: Tokenizer, manifest: EngineManifest) -> Check:
    prompt = tokenizer.encode(SAMPLES[0]).ids
    produced = engine.generate(prompt, _GENERATED_TOKENS)
    in_range = all(token < manifest.limits.vocab_size for token in produced)
    return Check.of("generates", in_range, f"{SAMPLES[0]!r} goes on {tokenizer.decode(produced)!r}")


def _encode_decoded(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    text = tokenizer.decode(ids, skip_special_tokens=False)
    return list(tokenizer.encode(text, add_special_tokens=False).ids)
