"""The steps of a build, in order. Each step is a call into the module that knows how; the flow is all that is here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from build_engine.artifact.engine_dir import DEFAULT_ROOT, LOCK_WAIT_S, build_lock, new_engine, require_replaceable
from build_engine.artifact.file_checks import file_problems
from build_engine.artifact.resources import require_disk, require_memory
from build_engine.artifact.result import BuildResult
from build_engine.artifact.sample_texts import TEXTS
from build_engine.artifact.tokenizer_checks import encode_texts
from build_engine.cpu.default_model import ModelFile
from build_engine.cpu.gguf_model import GgufSource
from build_engine.cpu.greedy import GreedyEngine
from build_engine.cpu.inputs import BuildInputs, choose_name, collect_inputs, default_output, hash_source
from build_engine.cpu.quantization_error import measure_quantization_error
from build_engine.cpu.supported_models import require_supported
from build_engine.cpu.tokenizer import build_tokenizer
from build_engine.cpu.weights import INT8, make_weights, quantized
from build_engine.errors import BuildEngineError, EngineRefusedError
from build_engine.progress import BuildProgress, SilentProgress
from build_engine.targets.registry import Target, require_available
from llm_pipeline.engine_files.manifest import (
    MANIFEST_NAME,
    TOKENIZER_NAME,
    Drift,
    EngineFile,
    EngineManifest,
    ManifestError,
    sha256_of,
)
from llm_pipeline.executors.cpu.engine.weights import WEIGHTS_NAME, save_weights

ENGINE_FILES = (WEIGHTS_NAME, TOKENIZER_NAME)
_EARLIER_FILES = ("openvino_model.xml", "openvino_model.bin")  # of version 0.1, which may be replaced
_SMOKE_TOKENS = 8


@dataclass(frozen=True)
class BuildRequest:
    """What the person asked for; None means the default."""

    model: ModelFile
    target: Target
    precision: str
    output: Path | None = None
    name: str | None = None
    context_length: int | None = None
    force: bool = False
    root: Path = DEFAULT_ROOT  # of engines whose place `output` does not say
    lock_wait_s: float = LOCK_WAIT_S


def build_engine(request: BuildRequest, progress: BuildProgress) -> BuildResult:
    """Build an engine, or find that it is there. EngineRefusedError before any work, BuildEngineError after."""
    require_available(request.target)
    source = _open_source(request, progress)
    engine_dir = (request.output or _default_output(request, source)).absolute()
    recipe = _make_recipe(request, source, hash_source(request.model.path, progress))

    def tell_waiting() -> None:
        progress.note(f"Another build of {engine_dir.name} is running; waiting for it.")

    with build_lock(engine_dir, tell_waiting, request.lock_wait_s):
        existing = _existing(engine_dir, recipe, request.force, progress)
        if existing:
            return BuildResult(engine_dir, existing, reused=True)
        require_disk(engine_dir.parent, source.fp16_bytes)
        require_memory(source.fp16_bytes)
        with new_engine(engine_dir) as building:
            manifest = _build_into(building, source, recipe, progress)
    return BuildResult(engine_dir, manifest, reused=False)


def plan_engine(request: BuildRequest) -> Path:
    """Where `build_engine` would build; EngineRefusedError for all that can be told without hashing the model."""
    require_available(request.target)
    source = _open_source(request, SilentProgress())
    _make_recipe(request, source, sha256="")
    return (request.output or _default_output(request, source)).absolute()


def _open_source(request: BuildRequest, progress: BuildProgress) -> GgufSource:
    with progress.step(f"read {request.model.path.name}"):
        source = GgufSource(request.model.path)
        require_supported(source)
    return source


def _default_output(request: BuildRequest, source: GgufSource) -> Path:
    name = choose_name(request.name, request.model, source)
    return default_output(name, request.target, request.precision, request.root)


def _make_recipe(request: BuildRequest, source: GgufSource, sha256: str) -> BuildInputs:
    vocabulary = source.vocabulary()
    build_tokenizer(vocabulary)  # refuses a tokenizer that can't be represented before anything heavy starts
    return collect_inputs(
        source,
        vocabulary,
        request.model,
        request.target,
        request.precision,
        name=request.name,
        context_length=request.context_length,
        sha256=sha256,
    )


def _existing(engine_dir: Path, recipe: BuildInputs, force: bool, progress: BuildProgress) -> EngineManifest | None:
    """The manifest of a good engine with this recipe. EngineRefusedError when what is there must not be replaced."""
    require_replaceable(engine_dir, frozenset((*ENGINE_FILES, *_EARLIER_FILES)))
    if not (engine_dir / MANIFEST_NAME).exists():
        return None
    try:
        manifest = EngineManifest.load(engine_dir)
    except ManifestError:
        progress.note("The engine there has no readable manifest: building it again.")
        return None
    if force:
        progress.note("Building again, as --force asks.")
        return None
    if manifest.source.sha256 != recipe.source.sha256:
        raise EngineRefusedError(
            f"{engine_dir} holds an engine of another model ({manifest.source.name}). "
            "Replace it with --force, or choose another --output."
        )
    reason = recipe.difference(manifest) or next(iter(file_problems(engine_dir, manifest)), None)
    if reason:
        progress.note(f"Building again: {reason}.")
    return None if reason else manifest


def _build_into(building: Path, source: GgufSource, recipe: BuildInputs, progress: BuildProgress) -> EngineManifest:
    with progress.step("build the tokenizer"):
        build_tokenizer(source.vocabulary()).save(str(building / TOKENIZER_NAME), pretty=False)
    with progress.step(f"dequantise {recipe.source.quantization} to fp16", source.fp16_bytes) as advance:
        weights = make_weights(source, advance)
    drift = None
    if recipe.precision == INT8:
        with progress.step("quantise to int8"):
            exact, weights = weights, quantized(weights)
        with progress.step("measure the drift from fp16"):
            texts = encode_texts(building / TOKENIZER_NAME, TEXTS)
            drift = measure_quantization_error(GreedyEngine(exact), GreedyEngine(weights), texts)
    with progress.step("write the weights"):
        save_weights(building / WEIGHTS_NAME, weights)
    with progress.step("load the engine and generate"):
        _smoke_test(building, recipe)
    with progress.step("hash the files"):
        manifest = _manifest(building, recipe, drift)
    manifest.save(building)
    return manifest


def _smoke_test(building: Path, recipe: BuildInputs) -> None:
    """An engine that can't make tokens is not published."""
    prompt = [recipe.tokens.bos or 0]
    produced = GreedyEngine.load(building).generate(prompt, _SMOKE_TOKENS)
    if any(token >= recipe.limits.vocab_size for token in produced):
        raise BuildEngineError(f"The engine made token {max(produced)}, above its {recipe.limits.vocab_size} rows.")


def _manifest(building: Path, recipe: BuildInputs, drift: Drift | None) -> EngineManifest:
    paths = {name: building / name for name in ENGINE_FILES}
    return EngineManifest(
        target=recipe.target,
        precision=recipe.precision,
        model_name=recipe.model_name,
        source=recipe.source,
        tools=recipe.tools,
        limits=recipe.limits,
        tokens=recipe.tokens,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        files={
            name: EngineFile(sha256=sha256_of(path), size_bytes=path.stat().st_size) for name, path in paths.items()
        },
        drift=drift,
    )
