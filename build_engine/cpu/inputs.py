"""Collects the inputs of a CPU build before it starts. The same inputs give the same engine files."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from build_engine.artifact.chat_templates import ChatTemplates
from build_engine.artifact.engine_dir import DEFAULT_ROOT
from build_engine.cpu.checkpoint import Checkpoint
from build_engine.cpu.default_model import ModelFile
from build_engine.errors import EngineRefusedError
from build_engine.model_names import checked_model_name, slug
from build_engine.targets.registry import Target
from llm_pipeline.engine_files.manifest import EngineLimits, EngineManifest, SourceModel, TokenIds

TOOLS = ("openvino", "gguf", "safetensors", "tokenizers", "numpy", "triton-completions")


@dataclass(frozen=True)
class BuildInputs:
    """Everything that determines the content of an engine's files."""

    target: str
    precision: str
    model_name: str
    source: SourceModel
    tools: dict[str, str]
    limits: EngineLimits
    tokens: TokenIds
    chat: ChatTemplates

    def difference(self, manifest: EngineManifest) -> str | None:
        """The first field that differs in the manifest of an existing engine, as a message; None if all are equal."""
        for name in ("target", "precision", "model_name", "source", "tools", "limits", "tokens"):
            if getattr(self, name) != getattr(manifest, name):
                return f"its {name} differ" if name.endswith("s") else f"its {name} differs"
        return self.chat.difference(manifest)


def collect_inputs(
    checkpoint: Checkpoint,
    model: ModelFile,
    target: Target,
    precision: str,
    *,
    name: str | None = None,
    context_length: int | None = None,
    sha256: str,
    chat: ChatTemplates,
) -> BuildInputs:
    """Raises EngineRefusedError if the context length exceeds the trained one, or the model's name is invalid."""
    return BuildInputs(
        target=target.name,
        precision=precision,
        model_name=choose_name(name, model, checkpoint),
        source=SourceModel(
            name=model.label,
            sha256=sha256,
            size_bytes=checkpoint.size_bytes,
            architecture=checkpoint.architecture_name,
            quantization=checkpoint.quantization,
        ),
        tools=tool_versions(),
        limits=_limits(checkpoint, context_length),
        tokens=checkpoint.token_ids,
        chat=chat,
    )


def choose_name(name: str | None, model: ModelFile, checkpoint: Checkpoint) -> str:
    """`name`, else the default model's, else a slug of the checkpoint's."""
    return checked_model_name(name or model.model_name or slug(checkpoint.name) or slug(model.path.stem))


def default_output(model_name: str, target: Target, precision: str, root: Path = DEFAULT_ROOT) -> Path:
    """The engine directory if --output is not set."""
    return root / model_name / f"{target.name}-{precision}"


def tool_versions() -> dict[str, str]:
    """Installed versions of the packages that take part in a build, or "not installed"."""
    return {name: _version(name) for name in TOOLS}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _limits(checkpoint: Checkpoint, context_length: int | None) -> EngineLimits:
    trained = checkpoint.context_length
    length = trained if context_length is None else context_length
    if not 2 <= length <= trained:
        raise EngineRefusedError(f"Context length {length} is out of range. This model supports 2 to {trained} tokens.")
    if checkpoint.token_count > checkpoint.vocab_size:
        raise EngineRefusedError(
            f"The tokenizer has {checkpoint.token_count} tokens, but the output matrix only {checkpoint.vocab_size} "
            "rows. Convert the model again."
        )
    return EngineLimits(context_length=length, vocab_size=checkpoint.vocab_size)
