"""`python -m launcher.engine_gate`: decides before a server starts whether it can serve the engine in ENGINE_DIR.

An orchestrator runs it as an init container in the serving image. It needs no GPU, loads nothing and writes nothing.
What it can't see, the loading executor checks: the GPU's SM and its free memory.

Exit status: 0 the engine may be loaded; 3 it may not, and a retry would have the same result: one line on stderr has
the cause and the fix; 2 an invalid setting; 1 the storage failed, which may be temporary.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from build_engine.artifact.file_checks import file_problems, size_of
from launcher.gpu.served_engine import LaunchError, read_engine
from llm_pipeline.engine_files.manifest import MANIFEST_NAME, EngineManifest, ManifestError, Runtime
from llm_pipeline.engine_files.trtllm_releases import pytorch_profile_of
from llm_pipeline.protocol.executor_names import ExecutorName
from llm_pipeline.runtime.program_settings import ProgramSettings

REFUSED_STATUS = 3
_RUNTIMES: dict[ExecutorName, Runtime] = {
    "cpu": "cpu",
    "scripted": "cpu",
    "tensorrt_llm": "engine",
    "tensorrt_llm_pytorch": "pytorch",
}
_FORMAT_VERSION = EngineManifest.model_fields["format_version"].default


class GateSettings(ProgramSettings):
    """The engine and what it is compared with."""

    engine_dir: Path = Field(description="Engine directory made by build_engine")
    executor: ExecutorName = Field("cpu", description="Executor that will load the engine")
    gpu_count: int | None = Field(None, ge=1, description="Number of GPUs in this server; unset: not compared")
    lws_group_size: int = Field(1, ge=1, description="Set by LeaderWorkerSet: number of pods in the group")
    gate_check: Literal["sha256", "size"] = Field(
        "sha256", description="Gate: how files are compared with the manifest; size is faster"
    )
    gate_manifest_sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="Gate: SHA-256 that manifest.json must have, which pins every file. Unset: not compared",
    )


class GateError(Exception):
    """The engine can't be served here, and a retry would have the same result."""


def check_engine(settings: GateSettings) -> EngineManifest:
    """Checks from the cheapest to the dearest, so that an unsuitable engine costs no reading of weights.

    Raises GateError, or OSError if the storage fails.
    """
    directory = settings.engine_dir
    manifest = _read_manifest(settings)
    try:
        manifest.require_runtime(_RUNTIMES[settings.executor], directory)
        _check_release(manifest)
        _check_ranks(settings, manifest)
    except (ManifestError, LaunchError) as error:
        raise GateError(str(error)) from error
    # Files that count as known are not read: their presence and their size are compared.
    known = None if settings.gate_check == "sha256" else manifest.files
    problems = file_problems(directory, manifest, known=known)
    if problems:
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise GateError(f"{directory}: {problems[0]}{more}. Copy the engine again, or build it again with --force.")
    return manifest


def _read_manifest(settings: GateSettings) -> EngineManifest:
    directory = settings.engine_dir
    try:
        content = (directory / MANIFEST_NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise GateError(
            f"No engine in {directory}: {MANIFEST_NAME} is missing. Check the path and the volume; a build or a copy "
            "writes this file last."
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if settings.gate_manifest_sha256 not in (None, found):
        raise GateError(
            f"{directory} has another engine than the one that was asked for: the SHA-256 of its {MANIFEST_NAME} is "
            f"{found}, and GATE_MANIFEST_SHA256 is {settings.gate_manifest_sha256}."
        )
    try:
        document = json.loads(content)
        version = document.get("format_version", _FORMAT_VERSION) if isinstance(document, dict) else None
        if version is not None and version != _FORMAT_VERSION:
            raise GateError(
                f"{directory / MANIFEST_NAME} has format version {version!r}; this release reads version "
                f"{_FORMAT_VERSION}. Serve the engine with the release that built it, or build it again."
            )
        return EngineManifest.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the document"
        raise GateError(
            f"{directory / MANIFEST_NAME} can't be read as an engine manifest: {place}: {first['msg']}."
        ) from error
    except ValueError as error:
        raise GateError(f"{directory / MANIFEST_NAME} is not JSON: {error}.") from error


def _check_release(manifest: EngineManifest) -> None:
    """Compares the release of TensorRT-LLM: equal for an engine, of the same profile for a model directory."""
    build = manifest.gpu or manifest.pytorch
    if build is None:
        return
    try:
        installed = importlib.metadata.version("tensorrt_llm")
    except importlib.metadata.PackageNotFoundError as error:
        raise GateError(
            f"TensorRT-LLM is not installed here; {manifest.model_name} needs {build.tensorrt_llm}. Use the GPU image."
        ) from error
    if manifest.gpu is not None and installed != build.tensorrt_llm:
        raise GateError(
            f"The engine was built with TensorRT-LLM {build.tensorrt_llm} and this image has {installed}; an engine "
            "runs only with the version that built it. Use the image that built it, or build the engine again."
        )
    profile = pytorch_profile_of(build.tensorrt_llm)
    if manifest.pytorch is not None and (profile is None or profile is not pytorch_profile_of(installed)):
        raise GateError(
            f"The model directory was made for TensorRT-LLM {build.tensorrt_llm} and this image has {installed}, which "
            "honors other request fields. Use an image of that release, or make the directory again with --force."
        )


def _check_ranks(settings: GateSettings, manifest: EngineManifest) -> None:
    if manifest.runtime == "cpu":
        return
    ranks = read_engine(settings.engine_dir).world_size
    servers = settings.lws_group_size
    if settings.gpu_count is not None and settings.gpu_count * servers != ranks:
        where = f"this server has {settings.gpu_count}" if servers == 1 else f"{servers} have {settings.gpu_count} each"
        raise GateError(
            f"The engine in {settings.engine_dir} is for {ranks} GPUs; {where} (GPU_COUNT). Request the number "
            "of GPUs that the engine was built for."
        )


def main() -> int:
    """Runs the check and returns the exit status."""
    try:
        settings = GateSettings()
        manifest = check_engine(settings)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc'])).upper()}: {item['msg']}" for item in error.errors()]
        sys.stderr.write(f"engine gate: invalid settings: {'; '.join(problems)}\n")
        return 2
    except GateError as error:
        sys.stderr.write(f"engine gate: refused: {' '.join(str(error).split())}\n")
        return REFUSED_STATUS
    except OSError as error:
        sys.stderr.write(f"engine gate: the storage failed: {error}\n")
        return 1
    sys.stdout.write(
        f"engine gate: passed: {manifest.model_name}, {manifest.target} {manifest.precision}, "
        f"{len(manifest.files)} files of {size_of(manifest)} bytes, checked by {settings.gate_check}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
