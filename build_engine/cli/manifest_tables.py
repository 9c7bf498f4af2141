"""Shows an engine directory: the result of a build, and its manifest as a table or as plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from build_engine.artifact.file_checks import size_of
from build_engine.artifact.result import BuildResult
from build_engine.cli.tables import relative_to_cwd
from build_engine.pytorch.verification.link_checks import link_sources, read_links
from llm_pipeline.engine_files.chat_files import template_names
from llm_pipeline.engine_files.manifest import EngineManifest, GpuBuild, PyTorchModel, Runtime

_UNITS = ((1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB"))
_RUNTIMES: dict[Runtime, str] = {
    "cpu": "CPU engine",
    "engine": "TensorRT-LLM, compiled engine",
    "pytorch": "TensorRT-LLM, PyTorch runtime",
}
_WEIGHTS = ".safetensors"


def build_result_json(result: BuildResult) -> dict[str, Any]:
    return {
        "engine_dir": str(result.engine_dir),
        "reused": result.reused,
        "runtime": result.manifest.runtime,
        "manifest": result.manifest.model_dump(),
    }


def print_build_result(console: Console, result: BuildResult) -> None:
    manifest = result.manifest
    state = "is valid already, nothing to build" if result.reused else "is ready"
    size = format_size(size_of(manifest))
    kind = "Engine"
    if manifest.pytorch:
        kind = "Model directory"
        size = f"{size} in {'links' if manifest.pytorch.is_linked else 'copies'}"
    console.print(
        f"{kind} {escape(manifest.model_name)} ({manifest.target}, {manifest.precision}, {size}) {state}:",
        soft_wrap=True,
        highlight=False,
    )
    console.print(f"  {escape(relative_to_cwd(result.engine_dir))}", soft_wrap=True, highlight=False)


def manifest_json(manifest: EngineManifest, engine_dir: Path) -> dict[str, Any]:
    """The manifest, the runtime that serves it, and the target of each file that is a link."""
    links = {name: str(target) for name, target in read_links(engine_dir, manifest).items()}
    return {**manifest.model_dump(), "runtime": manifest.runtime, "links": links}


def manifest_table(manifest: EngineManifest, engine_dir: Path) -> Table:
    table = Table(title=escape(f"Engine {engine_dir}"), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, value in _manifest_rows(manifest, engine_dir):
        table.add_row(label, escape(value))
    return table


def format_size(size_bytes: int) -> str:
    """In GB, MB or kB with one digit after the point, or in bytes."""
    for unit, name in _UNITS:
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} bytes"


def _manifest_rows(manifest: EngineManifest, engine_dir: Path) -> list[tuple[str, str]]:
    source, tokens = manifest.source, manifest.tokens
    eos = ", ".join(map(str, tokens.eos)) or "none"
    return [
        ("model", manifest.model_name),
        ("runtime", _RUNTIMES[manifest.runtime]),
        ("target", f"{manifest.target}, {manifest.precision}"),
        ("source", source.name),
        ("", f"{source.architecture}, {source.quantization}, {format_size(source.size_bytes)}"),
        ("", f"sha256 {source.sha256}"),
        ("context length", f"{manifest.limits.context_length} tokens"),
        ("vocabulary", f"{manifest.limits.vocab_size} rows"),
        ("special tokens", f"bos {tokens.bos} (added: {'yes' if tokens.add_bos else 'no'}), eos {eos}"),
        ("chat template", ", ".join(template_names(manifest)) or "none"),
        *(_gpu_rows(manifest.gpu) if manifest.gpu else []),
        *(_pytorch_rows(manifest.pytorch, _link_text(manifest, engine_dir)) if manifest.pytorch else []),
        ("created", manifest.created),
        *_labelled("tools", [f"{name} {version}" for name, version in manifest.tools.items()]),
        *_labelled("files", _file_lines(manifest)),
    ]


def _gpu_rows(gpu: GpuBuild) -> list[tuple[str, str]]:
    cuda = f", CUDA {gpu.cuda}" if gpu.cuda else ""
    calibration = gpu.calibration
    data, prefix_cache = "none", "with" if gpu.has_paged_context else "without"
    if calibration:
        data = f"{calibration.source}, {calibration.samples} samples of {calibration.tokens} tokens"
    return [
        ("runs on", f"{gpu.tp * gpu.pp} x SM {gpu.sm} (built on {gpu.gpu_name}), tp {gpu.tp}, pp {gpu.pp}"),
        ("runs with", f"TensorRT-LLM {gpu.tensorrt_llm}"),
        ("built with", f"TensorRT {gpu.tensorrt}, driver {gpu.driver}{cuda}"),
        ("limits", f"{gpu.max_batch_size} concurrent requests, {gpu.max_num_tokens} tokens per step"),
        ("KV cache", f"{gpu.kv_cache_precision}, {prefix_cache} prefix cache"),
        ("calibration", data),
        ("load test", "passed when it was built" if gpu.load_tested else "not run"),
    ]


def _pytorch_rows(model: PyTorchModel, links: str) -> list[tuple[str, str]]:
    experts = f", ep {model.ep}" if model.ep > 1 else ""
    return [
        ("planned for", f"{model.tp * model.pp} x SM {model.sm}, tp {model.tp}, pp {model.pp}{experts}"),
        ("checked for", f"TensorRT-LLM {model.tensorrt_llm}"),
        ("limits", f"{model.max_batch_size} concurrent requests, {model.max_num_tokens} tokens per step"),
        ("quantization", model.quantization or "none"),
        ("KV cache", "auto: as in the checkpoint" if model.kv_cache_precision == "auto" else model.kv_cache_precision),
        ("links", links),
        ("load test", "passed when it was built" if model.load_tested else "not run"),
    ]


def _link_text(manifest: EngineManifest, engine_dir: Path) -> str:
    links = read_links(engine_dir, manifest)
    broken = sum(not (engine_dir / name).exists() for name in links)
    if not links:
        return "none: the directory has copies"
    places = ", ".join(map(str, link_sources(links)))
    return f"{len(links)} files in {places}" + (f"; {broken} missing" if broken else "")


def _file_lines(manifest: EngineManifest) -> list[str]:
    """One line per file; one for all weights of a model directory, which may have hundreds."""
    weights = [file for name, file in manifest.files.items() if name.endswith(_WEIGHTS)]
    lines = [f"{name}, {format_size(file.size_bytes)}" for name, file in manifest.files.items()]
    if len(weights) < 2:
        return lines
    others = [line for name, line in zip(manifest.files, lines, strict=True) if not name.endswith(_WEIGHTS)]
    total = format_size(sum(file.size_bytes for file in weights))
    return [f"{len(weights)} files of weights ({_WEIGHTS}), {total}", *others]


def _labelled(label: str, lines: list[str]) -> list[tuple[str, str]]:
    return [(label if index == 0 else "", line) for index, line in enumerate(lines)]
