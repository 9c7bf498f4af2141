"""Reads, checks and writes `manifest.json`, which describes an engine directory. Imports no engine library."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.json"
_READ_SIZE = 1 << 20
Runtime = Literal["cpu", "engine", "pytorch"]
_RUNTIME_NAMES: dict[Runtime, str] = {
    "cpu": "CPUs",
    "engine": "TensorRT-LLM's engine runtime",
    "pytorch": "TensorRT-LLM's PyTorch runtime",
}
_EXECUTORS: dict[Runtime, str] = {"cpu": "cpu", "engine": "tensorrt_llm", "pytorch": "tensorrt_llm_pytorch"}


class ManifestError(Exception):
    """The engine directory can't be used. The message gives the cause and the fix."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceModel(_Strict):
    """The file that the engine was built from."""

    name: str  # a label: package and file name, never a path on the build machine
    sha256: str
    size_bytes: int
    architecture: str
    quantization: str  # of the source, such as Q4_1


class EngineLimits(_Strict):
    """The limits of the engine. preprocess validates every request against them."""

    context_length: int = Field(ge=2)  # prompt plus completion, in tokens
    vocab_size: int = Field(ge=1)  # rows of the output matrix; token ids are 0 to vocab_size - 1


class TokenIds(_Strict):
    """Special token ids of the model."""

    bos: int | None = None
    eos: list[int] = Field(default_factory=list)
    add_bos: bool = False  # from the tokenizer's own configuration


class EngineFile(_Strict):
    """The digest and size of one file of the engine directory."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class Calibration(_Strict):
    """The text from which the scales of a quantized engine were computed."""

    source: str  # a dataset's name, or the name (never the path) of a local directory
    samples: int = Field(ge=1)  # upper limit given to the quantiser
    tokens: int = Field(ge=1)  # per sample, upper limit
    seed: int
    sha256: str | None = None  # of a local directory: over names and hashes of its files


class GpuBuild(_Strict):
    """The build of a GPU engine. It runs only on this SM and with this version of TensorRT-LLM."""

    gpu_name: str  # as reported by the driver, such as "NVIDIA H100 80GB HBM3"
    sm: int = Field(ge=1)  # compute capability times ten
    driver: str
    tensorrt_llm: str
    tensorrt: str
    cuda: str | None = None  # the newest version that the driver supports, such as "13.0"
    tp: int = Field(ge=1)
    pp: int = Field(ge=1)  # the engine has tp x pp files, one per rank
    kv_cache_precision: str  # fp16 (16 bits, in the model's data type), fp32, fp8 or int8
    max_batch_size: int = Field(ge=1)  # requests that run at once
    max_num_tokens: int = Field(ge=1)  # per step
    has_paged_context: bool  # whether prefix reuse and chunked prefill are possible
    calibration: Calibration | None = None  # None: the engine needed none
    load_tested: bool = False  # whether it has generated on the build machine before it was published


class PyTorchModel(_Strict):
    """A model directory for TensorRT-LLM's PyTorch runtime, which compiles nothing and loads the weights as they are.

    It runs on every SM that computes its precision, and with the releases of TensorRT-LLM that know its architecture.
    The limits are those that the plan checked against the memory of the target.
    """

    architecture: str  # class name in config.json, such as LlamaForCausalLM
    tensorrt_llm: str  # the release that the directory was checked for
    sm: int = Field(ge=1)  # compute capability of the target times ten
    quantization: str | None = None  # algorithm in hf_quant_config.json or config.json, such as FP8; None: none
    kv_cache_precision: Literal["auto", "fp8", "nvfp4"] = "auto"
    tp: int = Field(ge=1)
    pp: int = Field(ge=1)
    ep: int = Field(default=1, ge=1)  # GPUs that share out the experts; divides tp
    max_batch_size: int = Field(ge=1)  # requests that run at once
    max_num_tokens: int = Field(ge=1)  # per step
    is_hybrid: bool = False  # whether layers without attention keep a state for each request
    is_linked: bool  # whether the weights are symbolic links to the model directory, or copies
    load_tested: bool = False  # whether it has generated on the build machine before it was published


class Drift(_Strict):
    """The error of a quantized CPU engine relative to the fp16 engine of the same model, over a few texts."""

    positions: int = Field(ge=1)  # tokens of the texts that were compared
    top_token_agreement: float  # share of positions with the same most likely token
    mean_kl_divergence: float  # from this engine's distribution to the fp16 engine's, in nats
    perplexity_ratio: float  # this engine's perplexity over the fp16 engine's


def _plain_relative(name: str) -> str:
    """Rejects names that lead out of the engine directory: a manifest is untrusted input."""
    parts = name.split("/")
    if not name or "\\" in name or PurePosixPath(name).is_absolute() or {"", ".", ".."} & set(parts):
        raise ValueError(f"{name!r} is not a plain path below the engine directory")
    return name


EngineFileName = Annotated[str, AfterValidator(_plain_relative)]


class EngineManifest(_Strict):
    """The description of one engine directory: model, build, limits, and the hash of every file."""

    format_version: Literal[1] = 1
    target: str
    precision: str
    model_name: str
    source: SourceModel
    tools: dict[str, str]  # package name -> version used in the build
    limits: EngineLimits
    tokens: TokenIds
    created: str  # ISO 8601, UTC
    files: dict[
        EngineFileName, EngineFile
    ]  # paths relative to the engine directory, with "/"; without the manifest itself
    gpu: GpuBuild | None = None  # of a compiled TensorRT-LLM engine
    pytorch: PyTorchModel | None = None  # of a model directory; without it and `gpu`, it is a CPU engine
    drift: Drift | None = None  # None: not quantized, or a GPU engine

    @model_validator(mode="after")
    def _has_one_runtime(self) -> EngineManifest:
        if self.gpu is not None and self.pytorch is not None:
            raise ValueError("gpu and pytorch exclude each other")
        return self

    @property
    def runtime(self) -> Runtime:
        """The runtime that serves the directory: the CPU engine, TensorRT-LLM's engine runtime or its PyTorch one."""
        if self.pytorch is not None:
            return "pytorch"
        return "cpu" if self.gpu is None else "engine"

    def require_runtime(self, runtime: Runtime, engine_dir: Path) -> None:
        """Raises ManifestError, with the executor that serves it, if the directory is for another runtime."""
        if self.runtime != runtime:
            raise ManifestError(
                f"The engine in {engine_dir} is for {_RUNTIME_NAMES[self.runtime]}. "
                f"Serve it with EXECUTOR={_EXECUTORS[self.runtime]}."
            )

    @classmethod
    def load(cls, engine_dir: Path) -> EngineManifest:
        """Reads the manifest. Raises ManifestError if it is missing, unreadable or of another format."""
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
        """Hashes every file. Raises ManifestError for the first that is missing or has changed since the build."""
        for name, expected in self.files.items():
            path = engine_dir / name
            if path.is_symlink() and not path.exists():
                raise ManifestError(
                    f"{name} of the engine in {engine_dir} links to {path.readlink()}, which does not exist. Mount the "
                    "model at that path, or build the engine again with --copy."
                )
            if not path.is_file():
                problem = "is missing"
            elif path.stat().st_size != expected.size_bytes or sha256_of(path) != expected.sha256:
                problem = "has changed since the build"
            else:
                continue
            raise ManifestError(f"{name} of the engine in {engine_dir} {problem}. Build the engine again with --force.")

    def save(self, engine_dir: Path) -> None:
        """Writes the manifest into the engine directory."""
        (engine_dir / MANIFEST_NAME).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    """Returns the hex digest of a file, which is read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_SIZE):
            digest.update(block)
    return digest.hexdigest()
