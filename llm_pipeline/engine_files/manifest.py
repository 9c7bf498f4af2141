"""`manifest.json` of an engine directory: what build_engine writes and every loader checks. No engine library here."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

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
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class Calibration(_Strict):
    """The text that a quantised engine's scales were taken from."""

    source: str  # a dataset's name, or the name (never the path) of a local directory
    samples: int = Field(ge=1)  # at most: what the quantiser was asked to read
    tokens: int = Field(ge=1)  # of each sample, at most
    seed: int
    sha256: str | None = None  # of a local directory: over names and hashes of its files


class GpuBuild(_Strict):
    """What an engine for GPUs is bound to (it runs on this SM and with this TensorRT-LLM only) and was built for."""

    gpu_name: str  # as the driver says it, such as "NVIDIA H100 80GB HBM3"
    sm: int = Field(ge=1)  # compute capability times ten
    driver: str
    tensorrt_llm: str
    tensorrt: str
    cuda: str | None = None  # the newest that the driver runs, such as "13.0"
    tp: int = Field(ge=1)
    pp: int = Field(ge=1)  # the engine has tp x pp files, one for each rank
    kv_cache_precision: str  # fp16 (16 bits, in the model's data type), fp32, fp8 or int8
    max_batch_size: int = Field(ge=1)  # requests that run at once
    max_num_tokens: int = Field(ge=1)  # of one step
    has_paged_context: bool  # whether prefix reuse and chunked prefill are possible
    calibration: Calibration | None = None  # None: nothing in the engine needed any
    load_tested: bool = False  # whether it was loaded, and generated, where it was built, before it was published


class Drift(_Strict):
    """How far a quantised CPU engine is from the fp16 engine of the same model, over the positions of a few texts."""

    positions: int = Field(ge=1)
    top_token_agreement: float  # share of positions where both find the same token most likely
    mean_kl_divergence: float  # of the fp16 engine's distribution from this one's, in nats
    perplexity_ratio: float  # of the texts: this engine's over the fp16 engine's


def _plain_relative(name: str) -> str:
    """A manifest comes from outside: a name in it must not lead out of the engine directory."""
    parts = name.split("/")
    if not name or "\\" in name or PurePosixPath(name).is_absolute() or {"", ".", ".."} & set(parts):
        raise ValueError(f"{name!r} is no plain path below the engine directory")
    return name


EngineFileName = Annotated[str, AfterValidator(_plain_relative)]


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
    files: dict[EngineFileName, EngineFile]  # below the engine directory, with "/"; the manifest itself is not in it
    gpu: GpuBuild | None = None  # None: an engine for CPUs
    drift: Drift | None = None  # None: not quantised, or an engine for GPUs

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
