"""Output of the commands: rich tables, and plain data for --json."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from build_engine.artifact.checks import Check, Outcome, verdict
from build_engine.artifact.result import BuildResult
from build_engine.targets.gpus import GB
from build_engine.targets.registry import Target, availability
from llm_pipeline.engine_files.manifest import EngineManifest, GpuBuild

_MB = 1_000_000
_OUTCOMES = {
    Outcome.PASSED: "[green]pass[/]",
    Outcome.FAILED: "[bold red]FAIL[/]",
    Outcome.NOT_CHECKED: "[yellow]not checked[/]",
}


def plain(text: str) -> str:
    """`text` with rich markup escaped."""
    return escape(text)


def build_result_json(result: BuildResult) -> dict[str, Any]:
    return {
        "engine_dir": str(result.engine_dir),
        "reused": result.reused,
        "manifest": result.manifest.model_dump(),
    }


def print_build_result(console: Console, result: BuildResult) -> None:
    manifest = result.manifest
    state = "is valid already, nothing to build" if result.reused else "is ready"
    size = sum(file.size_bytes for file in manifest.files.values()) / _MB
    console.print(
        f"Engine {escape(manifest.model_name)} ({manifest.target}, {manifest.precision}, {size:.0f} MB) {state}:"
    )
    console.print(f"  {escape(relative_to_cwd(result.engine_dir))}", soft_wrap=True, highlight=False)


def relative_to_cwd(path: Path) -> str:
    """Relative to the working directory if it is below it, else absolute."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def manifest_table(manifest: EngineManifest, engine_dir: Path) -> Table:
    table = Table(title=escape(f"Engine {engine_dir}"), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, value in _manifest_rows(manifest):
        table.add_row(label, escape(value))
    return table


def _manifest_rows(manifest: EngineManifest) -> list[tuple[str, str]]:
    source, tokens = manifest.source, manifest.tokens
    eos = ", ".join(map(str, tokens.eos)) or "none"
    return [
        ("model", manifest.model_name),
        ("target", f"{manifest.target}, {manifest.precision}"),
        ("source", source.name),
        ("", f"{source.architecture}, {source.quantization}, {source.size_bytes / _MB:.1f} MB"),
        ("", f"sha256 {source.sha256}"),
        ("context length", f"{manifest.limits.context_length} tokens"),
        ("vocabulary", f"{manifest.limits.vocab_size} rows"),
        ("special tokens", f"bos {tokens.bos} (added: {'yes' if tokens.add_bos else 'no'}), eos {eos}"),
        *(_gpu_rows(manifest.gpu) if manifest.gpu else []),
        ("created", manifest.created),
        *_labelled("tools", [f"{name} {version}" for name, version in manifest.tools.items()]),
        *_labelled("files", [f"{name}, {file.size_bytes / _MB:.1f} MB" for name, file in manifest.files.items()]),
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


def _labelled(label: str, lines: list[str]) -> list[tuple[str, str]]:
    return [(label if index == 0 else "", line) for index, line in enumerate(lines)]


def checks_json(checks: list[Check]) -> dict[str, Any]:
    return {
        "outcome": verdict(checks).value,
        "passed": verdict(checks) is Outcome.PASSED,
        "checks": [{"name": check.name, "outcome": check.outcome.value, "detail": check.detail} for check in checks],
    }


def checks_table(checks: list[Check]) -> Table:
    table = Table("check", "", "detail")
    for check in checks:
        table.add_row(escape(check.name), _OUTCOMES[check.outcome], escape(check.detail))
    return table


def targets_json(targets: Iterable[Target]) -> list[dict[str, Any]]:
    availabilities = [(target, availability(target)) for target in targets]
    return [
        {
            "name": target.name,
            "kind": target.kind.value,
            "sm": target.gpu.sm if target.gpu else None,
            "memory_bytes": target.gpu.memory_bytes if target.gpu else None,
            "precisions": list(target.precisions),
            "works_here": here.works,
            "reason": here.reason,
        }
        for target, here in availabilities
    ]


def print_targets(console: Console, targets: Iterable[Target]) -> None:
    """Prints a table, and below it one reason per kind of target, since its targets share it."""
    availabilities = [(target, availability(target)) for target in targets]
    table = Table("target", "SM", "GB", "precisions, default first", "can build")
    for target, here in availabilities:
        sm, memory = (str(target.gpu.sm), f"{target.gpu.memory_bytes / GB:.0f}") if target.gpu else ("", "")
        works = "[green]yes[/]" if here.works else "[red]no[/]"
        table.add_row(target.name, sm, memory, ", ".join(target.precisions), works)
    console.print(table)
    for kind in dict.fromkeys(target.kind for target, _ in availabilities):
        reason = next(here.reason for target, here in availabilities if target.kind is kind)
        console.print(f"{kind.value}: {escape(reason)}", soft_wrap=True, highlight=False)
