"""What goes into an engine, worked out before any work: two builds with the same recipe give the same files."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from build_engine.artifact.engine_dir import DEFAULT_ROOT
from build_engine.cpu.default_model import ModelFile
from build_engine.cpu.gguf_model import GgufSource
from build_engine.cpu.tokenizer import GgufVocabulary
from build_engine.errors import EngineRefusedError
from build_engine.model_names import slug
from build_engine.progress import BuildProgress
from build_engine.targets.registry import Target
from llm_pipeline.engine_files.manifest import EngineLimits, EngineManifest, SourceModel, TokenIds, sha256_of

TOOLS = ("openvino", "gguf", "safetensors", "tokenizers", "numpy", "triton-completions")


@dataclass(frozen=True)
class BuildInputs:
    """Everything that decides the content of an engine's files."""

    target: str
    precision: str
    model_name: str
    source: SourceModel
    tools: dict[str, str]
    limits: EngineLimits
    tokens: TokenIds

    def difference(self, manifest: EngineManifest) -> str | None:
        """The first thing that differs in an existing engine, for people; None when it was built from this recipe."""
        for name in ("target", "precision", "model_name", "source", "tools", "limits", "tokens"):
            if getattr(self, name) != getattr(manifest, name):
                return f"its {name} differ" if name.endswith("s") else f"its {name} differs"
        return None


def collect_inputs(
    source: GgufSource,
    vocabulary: GgufVocabulary,
    model: ModelFile,
    target: Target,
    precision: str,
    *,
    name: str | None = None,
    context_length: int | None = None,
    sha256: str,
) -> BuildInputs:
    """EngineRefusedError when the context length is more than the model was trained for, or the model has no name."""
    return BuildInputs(
        target=target.name,
        precision=precision,
        model_name=choose_name(name, model, source),
        source=SourceModel(
            name=model.label,
            sha256=sha256,
            size_bytes=model.path.stat().st_size,
            architecture=source.architecture,
            quantization=source.quantization,
        ),
        tools=tool_versions(),
        limits=_limits(source, vocabulary, context_length),
        tokens=TokenIds(bos=vocabulary.bos, eos=list(vocabulary.eos), add_bos=vocabulary.adds_bos),
    )


def hash_source(path: Path, progress: BuildProgress) -> str:
    """The model file's sha256."""
    with progress.step(f"hash {path.name}"):
        return sha256_of(path)


def choose_name(name: str | None, model: ModelFile, source: GgufSource) -> str:
    """The name given, the default model's, or a slug of the name inside the file."""
    chosen = name or model.model_name or slug(source.name) or slug(model.path.stem)
    if chosen != slug(chosen):
        raise EngineRefusedError(f"Model name {chosen!r} won't do: use small letters, digits, '.', '_' and '-'.")
    return chosen


def default_output(model_name: str, target: Target, precision: str, root: Path = DEFAULT_ROOT) -> Path:
    """Where an engine goes when --output does not say."""
    return root / model_name / f"{target.name}-{precision}"


def tool_versions() -> dict[str, str]:
    """Installed versions of the packages that take part; a source tree that is not installed is named as such."""
    return {name: _version(name) for name in TOOLS}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _limits(source: GgufSource, vocabulary: GgufVocabulary, context_length: int | None) -> EngineLimits:
    trained = source.context_length
    chosen = trained if context_length is None else context_length
    if not 2 <= chosen <= trained:
        raise EngineRefusedError(f"Context length {chosen} is out of range: this model takes 2 to {trained} tokens.")
    if len(vocabulary.tokens) > source.vocab_size:
        raise EngineRefusedError(
            f"The tokenizer has {len(vocabulary.tokens)} tokens, the output matrix only {source.vocab_size} rows."
        )
    return EngineLimits(context_length=chosen, vocab_size=source.vocab_size)
