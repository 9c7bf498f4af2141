"""Imports point one way, and what is heavy or platform-bound is imported in one place."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("llm_pipeline", "frontend", "build_engine", "launcher", "benchmarks", "complete_cli")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODEL_FILES = sorted((ROOT / "model_repository").glob("*/1/model.py"))

MAY_IMPORT = {
    "llm_pipeline": {"llm_pipeline"},
    "frontend": {"frontend", "llm_pipeline"},
    "build_engine": {"build_engine", "llm_pipeline"},
    "launcher": set(PACKAGES) - {"benchmarks", "complete_cli"},  # it starts all of them
    "benchmarks": set(PACKAGES) - {"complete_cli"},  # it measures all of them
    "complete_cli": {"complete_cli"},  # a client like any other
}

# Outside library -> the modules that may import it, inside functions too.
IMPORTED_BY = {
    "tokenizers": {
        "llm_pipeline/text/tokenizer.py",
        "build_engine/cpu/tokenizer.py",
        "build_engine/cpu/pre_tokenizers.py",
        "build_engine/cpu/verify.py",
    },
    "llguidance": {"llm_pipeline/runtime/guided_decoding.py"},
    "openvino": {
        "llm_pipeline/executors/cpu/engine/graph.py",
        "llm_pipeline/executors/cpu/engine/paged_model.py",
    },
    "openvino_genai": set(),  # a graph of our own took its place
    "safetensors": {"llm_pipeline/executors/cpu/engine/weights.py"},
    "gguf": {"build_engine/cpu/gguf_model.py"},
    "tritonclient": {"frontend/backends/grpc_channel.py", "benchmarks/load/grpc_load.py"},
    "grpc": {"frontend/backends/grpc_channel.py", "benchmarks/load/grpc_load.py"},
    "triton_python_backend_utils": {"llm_pipeline/triton/python_backend.py"},
    "llm_pipeline.triton.python_backend": set(),  # for the model.py files alone: it exists only inside Triton
    "psutil": {
        "launcher/local/preflight.py",
        "benchmarks/machine.py",
        "benchmarks/processes.py",
        "benchmarks/soak/samples.py",
        "benchmarks/soak/run.py",
        "benchmarks/soak/report.py",
    },
    "httpx": {
        "launcher/local/readiness.py",
        "benchmarks/load/http_recording.py",
        "benchmarks/systems/servers.py",
        "benchmarks/soak/traffic.py",
        "benchmarks/soak/run.py",
        "complete_cli/client.py",
    },
    "httpx_sse": {"benchmarks/load/http_recording.py", "benchmarks/soak/traffic.py", "complete_cli/client.py"},
    "h11": {"benchmarks/load/http_recording.py"},
    "matplotlib": {"benchmarks/report/plots.py", "benchmarks/soak/report.py"},
    "tensorrt_llm": {"llm_pipeline/executors/tensorrt_llm/bindings.py", "build_engine/gpu/trtllm.py"},
    "torch": {"llm_pipeline/executors/tensorrt_llm/bindings.py"},
    "transformers": set(),
    "pytriton": set(),
}

# Everybody else gets a settings object. The launcher hands the environment on to its children.
READ_ENVIRONMENT = {
    "launcher/local/frontend_process.py",
    "launcher/local/triton_wheel.py",
    "benchmarks/systems/servers.py",
}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> set[str]:
    """Dotted names of all that a file imports, wherever in it: both `a` and `a.b` for `from a import b`."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_within(imported: str, library: str) -> bool:
    return imported == library or imported.startswith(f"{library}.")


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_at_llm_pipeline(package: str) -> None:
    for path in MODULES:
        if path.relative_to(ROOT).parts[0] == package:
            ours = {name.split(".")[0] for name in imports(path)} & set(PACKAGES)
            assert ours <= MAY_IMPORT[package], name_of(path)


@pytest.mark.parametrize("library", IMPORTED_BY)
def test_a_library_is_imported_where_the_code_says(library: str) -> None:
    found = {name_of(path) for path in MODULES if any(is_within(name, library) for name in imports(path))}
    assert found <= IMPORTED_BY[library]


@pytest.mark.parametrize("path", MODEL_FILES, ids=name_of)
def test_a_models_glue_imports_only_the_pipeline_and_the_standard_library(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports(path)} - {"llm_pipeline", "functools", "logging", "uuid"}
    assert outside == set()


@pytest.mark.parametrize("stage", ["preprocess.py", "decode/stage.py", "postprocess.py"])
def test_a_stage_knows_nothing_of_triton_and_its_tensors(stage: str) -> None:
    names = imports(ROOT / "llm_pipeline" / "stages" / stage)
    assert not any(
        is_within(name, "llm_pipeline.protocol.tensors") or "triton" in name or "numpy" in name for name in names
    )


def test_nobody_reads_the_environment_but_settings_and_the_launcher() -> None:
    readers = set()
    for path in MODULES + MODEL_FILES:
        for node in ast.walk(tree(path)):
            is_attribute = isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "environb"}
            if is_attribute or (isinstance(node, ast.ImportFrom) and node.module == "os"):
                readers.add(name_of(path))
    assert readers <= READ_ENVIRONMENT
