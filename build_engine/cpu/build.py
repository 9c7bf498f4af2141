"""Builds a CPU engine from a GGUF file or a Hugging Face directory: tokenizer, weights, a test, and the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from build_engine.artifact.chat_templates import tried
from build_engine.artifact.engine_dir import DEFAULT_ROOT, LOCK_WAIT_S, build_lock, new_engine, require_replaceable
from build_engine.artifact.file_checks import file_problems
from build_engine.artifact.resources import LocalResources, Resources, require_resources
from build_engine.artifact.result import BuildResult
from build_engine.artifact.sample_texts import TEXTS
from build_engine.artifact.tokenizer_checks import encode_texts
from build_engine.cpu.checkpoint import Checkpoint
from build_engine.cpu.default_model import ModelFile
from build_engine.cpu.gguf.checkpoint import GgufCheckpoint
from build_engine.cpu.greedy import GreedyEngine
from build_engine.cpu.hugging_face.checkpoint import HuggingFaceCheckpoint
from build_engine.cpu.inputs import BuildInputs, choose_name, collect_inputs, default_output
from build_engine.cpu.quantization_error import measure_quantization_error
from build_engine.cpu.weights import INT8, convert_weights, quantize_weights
from build_engine.errors import BuildEngineError, OtherModelError
from build_engine.progress import BuildProgress, SilentProgress
from build_engine.targets.registry import Target, require_available
from llm_pipeline.engine_files.chat_files import is_chat_file
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
_VERSION_0_1_FILES = ("openvino_model.xml", "openvino_model.bin")  # may be replaced
_SMOKE_TEST_TOKENS = 8


@dataclass(frozen=True)
class BuildRequest:
    """The options of one build. None: the default."""

    model: ModelFile
    target: Target
    precision: str
    output: Path | None = None
    name: str | None = None
    context_length: int | None = None
    force: bool = False
    root: Path = DEFAULT_ROOT  # used without `output`
    lock_wait_s: float = LOCK_WAIT_S


def build_engine(request: BuildRequest, progress: BuildProgress, resources: Resources | None = None) -> BuildResult:
    """Builds an engine, or reuses a valid one. `resources` None: those of this machine.

    Raises EngineRefusedError before any work is done, BuildEngineError if a step fails.
    """
    require_available(request.target)
    checkpoint = _open_checkpoint(request, progress)
    engine_dir = (request.output or _default_output(request, checkpoint)).absolute()
    inputs = _collect_inputs(request, checkpoint, checkpoint.sha256(progress), progress)

    def note_waiting() -> None:
        progress.note(f"Another build of {engine_dir.name} is running. Waiting for it.")

    with build_lock(engine_dir, note_waiting, request.lock_wait_s):
        existing = _find_existing(engine_dir, inputs, request.force, progress)
        if existing:
            return BuildResult(engine_dir, existing, reused=True)
        require_resources(resources or LocalResources(), engine_dir.parent, checkpoint.fp16_bytes)
        with new_engine(engine_dir) as building:
            manifest = _build_into(building, checkpoint, inputs, progress)
    return BuildResult(engine_dir, manifest, reused=False)


def plan_engine(request: BuildRequest) -> Path:
    """The directory that `build_engine` would build. Raises EngineRefusedError like it, without hashing the model."""
    require_available(request.target)
    checkpoint = _open_checkpoint(request, SilentProgress())
    _collect_inputs(request, checkpoint, "", SilentProgress())
    return (request.output or _default_output(request, checkpoint)).absolute()


def _open_checkpoint(request: BuildRequest, progress: BuildProgress) -> Checkpoint:
    path = request.model.path
    with progress.step(f"read {path.name}"):
        return HuggingFaceCheckpoint(path) if path.is_dir() else GgufCheckpoint(path)


def _default_output(request: BuildRequest, checkpoint: Checkpoint) -> Path:
    name = choose_name(request.name, request.model, checkpoint)
    return default_output(name, request.target, request.precision, request.root)


def _collect_inputs(request: BuildRequest, checkpoint: Checkpoint, sha256: str, progress: BuildProgress) -> BuildInputs:
    checkpoint.tokenizer_json()  # rejects an unsupported tokenizer before any expensive step
    return collect_inputs(
        checkpoint,
        request.model,
        request.target,
        request.precision,
        name=request.name,
        context_length=request.context_length,
        sha256=sha256,
        chat=tried(checkpoint.chat_templates(), progress.note),
    )


def _find_existing(
    engine_dir: Path, inputs: BuildInputs, force: bool, progress: BuildProgress
) -> EngineManifest | None:
    """The manifest of a valid engine with these inputs; None if the directory may be replaced.

    Raises EngineRefusedError if it must not be replaced.
    """
    require_replaceable(engine_dir, frozenset((*ENGINE_FILES, *_VERSION_0_1_FILES)), is_chat_file)
    if not (engine_dir / MANIFEST_NAME).exists():
        return None
    try:
        manifest = EngineManifest.load(engine_dir)
    except ManifestError:
        progress.note("Rebuilding: the existing engine has no readable manifest.")
        return None
    if force:
        progress.note("Rebuilding because of --force.")
        return None
    if manifest.source.sha256 != inputs.source.sha256:
        raise OtherModelError(
            f"{engine_dir} contains an engine of another model ({manifest.source.name}). "
            "Replace it with --force, or choose another --output."
        )
    reason = inputs.difference(manifest) or next(iter(file_problems(engine_dir, manifest)), None)
    if reason:
        progress.note(f"Rebuilding: {reason}.")
    return None if reason else manifest


def _build_into(building: Path, checkpoint: Checkpoint, inputs: BuildInputs, progress: BuildProgress) -> EngineManifest:
    with progress.step("build the tokenizer"):
        (building / TOKENIZER_NAME).write_text(checkpoint.tokenizer_json(), encoding="utf-8")
        inputs.chat.write(building)
    with progress.step(f"dequantize {inputs.source.quantization} to fp16", checkpoint.fp16_bytes) as advance:
        weights = convert_weights(checkpoint, advance)
    quantization_error = None
    if inputs.precision == INT8:
        with progress.step("quantize to int8"):
            exact, weights = weights, quantize_weights(weights)
        with progress.step("measure the quantization error"):
            texts = encode_texts(building / TOKENIZER_NAME, TEXTS)
            quantization_error = measure_quantization_error(GreedyEngine(exact), GreedyEngine(weights), texts)
    with progress.step("write the weights"):
        save_weights(building / WEIGHTS_NAME, weights)
    with progress.step("load the engine and generate"):
        _smoke_test(building, inputs)
    with progress.step("hash the files"):
        manifest = _make_manifest(building, inputs, quantization_error)
    manifest.save(building)
    return manifest


def _smoke_test(building: Path, inputs: BuildInputs) -> None:
    """Raises BuildEngineError if the engine does not load or generates invalid token ids."""
    prompt_ids = [inputs.tokens.bos or 0]
    token_ids = GreedyEngine.load(building).generate(prompt_ids, _SMOKE_TEST_TOKENS)
    if any(token_id >= inputs.limits.vocab_size for token_id in token_ids):
        raise BuildEngineError(
            f"The engine generated token id {max(token_ids)}; the highest valid one is {inputs.limits.vocab_size - 1}."
        )


def _make_manifest(building: Path, inputs: BuildInputs, quantization_error: Drift | None) -> EngineManifest:
    paths = {name: building / name for name in (*ENGINE_FILES, *inputs.chat.files)}
    return EngineManifest(
        target=inputs.target,
        precision=inputs.precision,
        model_name=inputs.model_name,
        source=inputs.source,
        tools=inputs.tools,
        limits=inputs.limits,
        tokens=inputs.tokens,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        files={
            name: EngineFile(sha256=sha256_of(path), size_bytes=path.stat().st_size) for name, path in paths.items()
        },
        drift=quantization_error,
    )
