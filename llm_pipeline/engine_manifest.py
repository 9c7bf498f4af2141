"""`manifest.json` of an engine directory: what build_engine writes and every loader checks. No engine library here."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.json"
_READ_SIZE = 1 << 20


class ManifestError(Exception):
    """The engine directory can't be used; the message says why and how to mend it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceModel(_Strict):
    """The file that the engine was built from."""

    name: str  # a label for people: a package and file name, never a path of the building machine
    sha256: str
    size_bytes: int
    architecture: str
    quantization: str  # of the source, such as Q4_1


class EngineLimits(_Strict):
    """What the engine can take. preprocess checks every request against it."""

    context_length: int = Field(ge=2)  # prompt plus completion, in tokens
    vocab_size: int = Field(ge=1)  # rows of the output matrix; ids are 0 .. vocab_size - 1


class TokenIds(_Strict):
    """Special token ids of the model."""

    bos: int | None = None
    eos: list[int] = Field(default_factory=list)
    add_bos: bool = False  # from the tokenizer's own configuration


class EngineFile(_Strict):
    sha256: str
    size_bytes: int


class EngineManifest(_Strict):
    """One engine directory: what it is, what made it, and the hash of every file in it."""

    format_version: Literal[1] = 1
    target: str
    precision: str
    model_name: str
    source: SourceModel
    tools: dict[str, str]  # package name -> version that took part in the build
    limits: EngineLimits
    tokens: TokenIds
    created: str  # ISO 8601, UTC
    files: dict[str, EngineFile]  # path below the engine directory -> hash; the manifest itself is not in it

    @classmethod
    def load(cls, engine_dir: Path) -> EngineManifest:
        """Read the manifest; ManifestError when it is missing, unreadable or of another format."""
        path = engine_dir / MANIFEST_NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise ManifestError(
                f"No engine in {engine_dir}: {MANIFEST_NAME} is missing. "
                "Build one with `python -m build_engine build --target cpu`."
            ) from error
        except (OSError, ValidationError) as error:
            raise ManifestError(f"{path} can't be read as an engine manifest: {error}") from error

    def check_files(self, engine_dir: Path) -> None:
        """Re-hash every file; ManifestError names the first that is missing or not what was built."""
        for name, expected in self.files.items():
            path = engine_dir / name
            if not path.is_file():
                problem = "is missing"
            elif path.stat().st_size != expected.size_bytes or sha256_of(path) != expected.sha256:
                problem = "is not what was built"
            else:
                continue
            raise ManifestError(f"{name} of the engine in {engine_dir} {problem}. Build the engine again with --force.")

    def save(self, engine_dir: Path) -> None:
        (engine_dir / MANIFEST_NAME).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_SIZE):
            digest.update(block)
    return digest.hexdigest()
