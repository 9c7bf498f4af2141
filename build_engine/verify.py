"""Checks a finished engine directory: its files, its tokenizer, that it generates, and what it generates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from build_engine.errors import BuildEngineError
from build_engine.openvino_greedy import GreedyEngine
from build_engine.progress import BuildProgress
from build_engine.reference import reference_cases
from build_engine.targets import CPU
from llm_pipeline.engine_manifest import MANIFEST_NAME, TOKENIZER_NAME, EngineManifest, ManifestError, sha256_of

REBUILD = "Build it again: python -m build_engine build --force --output {directory}"
SAMPLES = (
    "Hello",
    " two  spaces, a tab\tand\nnew lines\n\n",
    "In 2024 there were 1,234 of 56789.",
    "Grüße aus Köln, Привет, 你好, مرحبا",
    "def f(x):\n    return x ** 2  # 🙂",
)
_GENERATED_TOKENS = 16


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool
    detail: str


def verify_engine(engine_dir: Path, progress: BuildProgress) -> list[Check]:
    """Every check that can be made, in order. Damaged files are not loaded, and engines for GPUs are not either."""
    try:
        manifest = EngineManifest.load(engine_dir)
    except ManifestError as error:
        return [Check(MANIFEST_NAME, False, str(error))]
    checks = [Check(MANIFEST_NAME, True, f"{manifest.model_name}, {manifest.target} {manifest.precision}")]
    with progress.step("hash the files"):
        checks += _file_checks(engine_dir, manifest)
    if not all(check.passed for check in checks):
        return checks
    with progress.step("check the tokenizer"):
        tokenizer = Tokenizer.from_file(str(engine_dir / TOKENIZER_NAME))
        checks += _tokenizer_checks(tokenizer, manifest)
    if manifest.target != CPU.name:  # only a machine with that GPU could load it
        return checks
    with progress.step("load the engine and generate"):
        checks += _generation_checks(engine_dir, tokenizer, manifest)
    return checks


def file_problems(engine_dir: Path, manifest: EngineManifest) -> list[str]:
    """What is wrong with the files, one sentence each; empty when all are as they were built."""
    checks = _file_checks(engine_dir, manifest)
    return [f"{check.name} {check.detail}" for check in checks if not check.passed]


def _file_checks(engine_dir: Path, manifest: EngineManifest) -> list[Check]:
    checks = [_file_check(engine_dir, name, manifest) for name in sorted(manifest.files)]
    expected = {*manifest.files, MANIFEST_NAME}
    found = sorted(str(path.relative_to(engine_dir)) for path in engine_dir.rglob("*") if not path.is_dir())
    return checks + [Check(name, False, "is no part of the engine") for name in found if name not in expected]


def _file_check(engine_dir: Path, name: str, manifest: EngineManifest) -> Check:
    path, expected = engine_dir / name, manifest.files[name]
    if ".." in Path(name).parts or Path(name).is_absolute():
        return Check(name, False, "points outside the engine directory")
    if not path.is_file():
        return Check(name, False, "is missing")
    if (size := path.stat().st_size) != expected.size_bytes:
        return Check(name, False, f"has {size} bytes instead of {expected.size_bytes}")
    if sha256_of(path) != expected.sha256:
        return Check(name, False, "has been changed: its sha256 differs from the manifest")
    return Check(name, True, f"{expected.size_bytes} bytes, sha256 {expected.sha256[:12]}")


def _tokenizer_checks(tokenizer: Tokenizer, manifest: EngineManifest) -> Iterator[Check]:
    size, rows = tokenizer.get_vocab_size(), manifest.limits.vocab_size
    yield Check("tokenizer size", size <= rows, f"{size} tokens, {rows} rows in the output matrix")
    wrong = [text for text in SAMPLES if _round_trip(tokenizer, text) != text]
    detail = f"{wrong[0]!r} comes back as {_round_trip(tokenizer, wrong[0])!r}" if wrong else f"{len(SAMPLES)} texts"
    yield Check("tokenizer round trip", not wrong, detail)


def ids_added_to_any_text(tokenizer_path: Path) -> list[int]:
    """What the tokenizer itself puts around a text, such as a beginning-of-text token."""
    return list(Tokenizer.from_file(str(tokenizer_path)).encode("").ids)


def _round_trip(tokenizer: Tokenizer, text: str) -> str:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def _generation_checks(engine_dir: Path, tokenizer: Tokenizer, manifest: EngineManifest) -> list[Check]:
    try:
        engine = GreedyEngine(engine_dir)
        checks = [_generates(engine, tokenizer, manifest)]
        cases = reference_cases(manifest.source.sha256)
        exact = [engine.generate(case.prompt_ids, len(case.greedy_ids)) == case.greedy_ids for case in cases]
    except BuildEngineError as error:
        return [Check("generates", False, str(error))]
    if not cases:
        return [*checks, Check("reference tokens", True, "no reference is known for this model")]
    again = [_encode_decoded(tokenizer, case.prompt_ids) == case.prompt_ids for case in cases]
    return [
        *checks,
        Check("reference tokens", all(exact), f"{sum(exact)} of {len(cases)} greedy continuations equal"),
        Check("reference prompts", all(again), f"{sum(again)} of {len(cases)} keep their ids through text"),
    ]


def _generates(engine: GreedyEngine, tokenizer: Tokenizer, manifest: EngineManifest) -> Check:
    prompt = tokenizer.encode(SAMPLES[0]).ids
    produced = engine.generate(prompt, _GENERATED_TOKENS)
    in_range = all(token < manifest.limits.vocab_size for token in produced)
    return Check("generates", in_range, f"{SAMPLES[0]!r} goes on {tokenizer.decode(produced)!r}")


def _encode_decoded(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    text = tokenizer.decode(ids, skip_special_tokens=False)
    return list(tokenizer.encode(text, add_special_tokens=False).ids)
