"""Imports point one way, between packages and between the rooms of each; heavy libraries are imported in one place.

Also the size of rooms, modules and functions, so that none grows past what one reading takes in.
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "llm_pipeline",
    "frontend",
    "build_engine",
    "launcher",
    "benchmarks",
    "complete_cli",
    "triton_completions",
)
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODEL_FILES = sorted((ROOT / "model_repository").glob("*/1/model.py"))
TEST_FILES = sorted((ROOT / "tests").rglob("*.py"))
TEST_FOLDERS = sorted(path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.rglob("*.py")))

MAY_IMPORT = {
    "llm_pipeline": {"llm_pipeline"},
    "frontend": {"frontend", "llm_pipeline"},
    "build_engine": {"build_engine", "llm_pipeline"},
    "launcher": set(PACKAGES) - {"benchmarks", "complete_cli", "triton_completions"},  # it starts all of them
    "benchmarks": set(PACKAGES) - {"complete_cli", "triton_completions"},  # it measures all of them
    "complete_cli": {"complete_cli"},  # a client like any other
    "triton_completions": set(PACKAGES) - {"benchmarks"},  # its commands are the other programs
}

# The rooms of each package from the lowest to the highest. A room is a folder or a module, and belongs to the longest
# name here that is the beginning of its own. It may import what stands before it; rooms of one line never import each
# other, and a room that is not here is an error.
ROOMS: dict[str, tuple[tuple[str, ...], ...]] = {
    "llm_pipeline": (
        ("protocol",),
        ("engine_files",),
        ("text",),
        ("chat_templates",),
        ("runtime",),
        ("guides",),
        ("executors/port", "executors/step_builder", "executors/waiting_queue"),
        ("executors/cpu/engine",),
        ("executors/cpu", "executors/tensorrt_llm", "executors/scripted"),
        ("executors/tensorrt_llm_pytorch",),
        ("executors/registry",),
        ("stages",),
        ("triton",),
    ),
    "frontend": (
        ("settings", "api_key", "unfinished", "loop_breaks"),
        ("observability",),
        ("request",),
        ("chat/plain_text",),
        ("chat/template",),
        ("backends",),
        ("multiprocess",),
        ("redis_client",),
        ("keys",),
        ("limits", "usage"),
        ("generation",),
        ("models",),
        ("response",),
        ("chat",),
        ("dependencies",),
        ("api",),
        ("app",),
        ("transport",),
        ("server",),
        ("worker_main",),
        ("__main__",),
    ),
    "build_engine": (
        ("errors", "progress"),
        ("model_names",),
        ("targets",),
        ("artifact",),
        ("cpu", "gpu/planning"),
        ("gpu", "pytorch"),
        ("planning",),
        ("gpu/verification",),
        ("pytorch/verification",),
        ("gpu/building", "pytorch/building", "verification"),
        ("fleet",),
        ("cli",),
        ("__main__",),
    ),
    "launcher": (
        (
            "check_python",
            "install",
            "memory",
            "ports",
            "private_files",
            "setting_problems",
            "stub_monitor",
            "triton_access",
            "triton_tracing",
        ),
        ("settings",),
        ("model_repository",),
        ("local", "gpu"),
        ("setting_names",),
        ("engine_gate",),
        ("__main__",),
    ),
    "benchmarks": (
        ("machine", "processes"),
        ("load",),
        ("scenarios",),
        ("report", "systems"),
        ("progress", "runner", "options"),
        ("soak", "siege", "fleet", "cli", "write_path", "prefix_cache"),
        ("__main__",),
    ),
    "complete_cli": (
        ("request", "report", "output", "local_server"),
        ("client", "conversation"),
        ("chat_answer",),
        ("options", "interaction"),
        ("chat_cli",),
        ("cli",),
        ("__main__",),
    ),
    "triton_completions": (("keys", "usage"), ("__main__",)),
}

MODULES_IN_A_FOLDER = 14
LINES_OF_A_MODULE = 400
LINES_OF_A_FUNCTION = 60

# Outside library -> the modules that import it, inside functions too.
IMPORTED_BY = {
    "jinja2": {
        "llm_pipeline/chat_templates/compiled.py",
        "llm_pipeline/chat_templates/environment.py",
        "llm_pipeline/chat_templates/metering.py",
    },
    "tokenizers": {
        "llm_pipeline/text/tokenizer.py",
        "build_engine/cpu/gguf/tokenizer.py",
        "build_engine/cpu/gguf/pre_tokenizers.py",
        "build_engine/artifact/model_tokenizer.py",
        "build_engine/artifact/tokenizer_checks.py",
        "build_engine/cpu/generation_checks.py",
    },
    "llguidance": {"llm_pipeline/guides/compilers/llguidance_compiler.py"},
    "xgrammar": {"llm_pipeline/guides/compilers/xgrammar_compiler.py"},
    "openvino": {
        "llm_pipeline/executors/cpu/engine/graph.py",
        "llm_pipeline/executors/cpu/engine/paged_model.py",
    },
    "openvino_genai": set(),  # replaced by a graph of our own
    "safetensors": {"llm_pipeline/executors/cpu/engine/weights.py"},
    "gguf": {"build_engine/cpu/gguf/gguf_model.py"},
    "tritonclient": {"frontend/backends/grpc_channel.py", "benchmarks/load/grpc_load.py"},
    "grpc": {"frontend/backends/grpc_channel.py", "benchmarks/load/grpc_load.py"},
    "opentelemetry": {"frontend/observability/otel.py"},
    "triton_python_backend_utils": {"llm_pipeline/triton/python_backend.py", "llm_pipeline/triton/decode_metrics.py"},
    "llm_pipeline.triton.decode_metrics": set(),  # for decode's model.py alone: it exists only inside Triton
    "llm_pipeline.triton.python_backend": set(),  # for the model.py files alone: it exists only inside Triton
    "psutil": {
        "launcher/memory.py",
        "benchmarks/machine.py",
        "benchmarks/processes.py",
        "benchmarks/soak/samples.py",
        "benchmarks/soak/run.py",
        "benchmarks/soak/report.py",
        "benchmarks/siege/watch.py",
    },
    "httpx": {
        "launcher/local/readiness.py",
        "benchmarks/systems/servers.py",
        "benchmarks/soak/traffic.py",
        "benchmarks/soak/run.py",
        "benchmarks/prefix_cache/conversations.py",
        "benchmarks/prefix_cache/servers.py",
        "benchmarks/fleet/traffic.py",
        "benchmarks/fleet/texts.py",
        "benchmarks/fleet/prometheus.py",
        "complete_cli/client.py",
    },
    "httpx_sse": {"benchmarks/soak/traffic.py", "benchmarks/prefix_cache/conversations.py", "complete_cli/client.py"},
    "redis": {"frontend/redis_client.py"},
    "h11": {"benchmarks/load/http_recording.py"},
    "matplotlib": {
        "benchmarks/report/plots.py",
        "benchmarks/soak/report.py",
        "benchmarks/siege/report.py",
        "benchmarks/fleet/report.py",
    },
    "yaml": {"benchmarks/fleet/chart.py"},
    "tensorrt_llm": {
        "llm_pipeline/executors/tensorrt_llm/bindings.py",
        "llm_pipeline/executors/tensorrt_llm_pytorch/bindings.py",
        "build_engine/gpu/trtllm.py",
        "build_engine/pytorch/trtllm.py",
    },
    "torch": {
        "llm_pipeline/executors/tensorrt_llm/bindings.py",
        "llm_pipeline/executors/tensorrt_llm_pytorch/bindings.py",
    },
    "mpi4py": {"llm_pipeline/executors/tensorrt_llm_pytorch/bindings.py"},
    "transformers": set(),
    "pytriton": set(),
}

# All other modules receive a settings object. The launcher passes the environment, with the settings on its command
# line, on to its child processes, and the settings' base class looks for former names of settings, which pydantic would
# not read.
READ_ENVIRONMENT = {
    "launcher/__main__.py",
    "launcher/gpu/remote_command.py",
    "launcher/gpu/worker.py",
    "launcher/local/frontend_process.py",
    "launcher/local/triton_wheel.py",
    "benchmarks/systems/servers.py",
    "benchmarks/fleet/pods.py",
    "llm_pipeline/runtime/program_settings.py",
    "llm_pipeline/executors/tensorrt_llm_pytorch/bindings.py",  # sets what upstream reads there
}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> set[str]:
    """Dotted names of all imports of a file, inside functions too: both `a` and `a.b` for `from a import b`."""
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
def test_a_library_is_imported_by_the_listed_modules_alone(library: str) -> None:
    found = {name_of(path) for path in MODULES if any(is_within(name, library) for name in imports(path))}
    assert found == IMPORTED_BY[library]


@pytest.mark.parametrize("path", MODEL_FILES, ids=name_of)
def test_model_files_import_only_the_pipeline_and_the_standard_library(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names
    assert outside == {"llm_pipeline"}


@pytest.mark.parametrize("stage", ["preprocess.py", "decode/stage.py", "postprocess.py"])
def test_stages_are_independent_of_triton_and_its_tensors(stage: str) -> None:
    names = imports(ROOT / "llm_pipeline" / "stages" / stage)
    assert not any(
        is_within(name, "llm_pipeline.protocol.tensors") or "triton" in name or "numpy" in name for name in names
    )


def test_only_settings_and_the_launcher_read_the_environment() -> None:
    readers = set()
    for path in MODULES + MODEL_FILES:
        for node in ast.walk(tree(path)):
            is_attribute = isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "environb"}
            if is_attribute or (isinstance(node, ast.ImportFrom) and node.module == "os"):
                readers.add(name_of(path))
    assert readers <= READ_ENVIRONMENT


# --- Rooms -----------------------------------------------------------------------------------------------------------


@cache
def our_modules() -> dict[str, Path]:
    """Files by dotted name; a package's `__init__` is the package."""
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES}


@cache
def imported_modules(path: Path) -> frozenset[str]:
    """Our own modules that a file imports, inside functions too."""
    modules, found = our_modules(), imports(path) & set(our_modules())
    # `from a.b import c` names both a.b and a.b.c; the package is meant only if c is no module.
    return frozenset(name for name in found if modules[name].stem != "__init__" or _has_code(modules[name]))


def _has_code(path: Path) -> bool:
    return any(not isinstance(node, ast.Expr) for node in tree(path).body)


def level(module: str) -> tuple[int, str]:
    """The height of a module's room in its package, and the room's name."""
    package, *rest = module.split(".")
    path = "/".join(rest)
    rooms = [
        (len(room), number, room)
        for number, line in enumerate(ROOMS[package])
        for room in line
        if path == room or path.startswith(f"{room}/")
    ]
    if not rooms:
        return (
            (-1, "") if our_modules()[module].stem == "__init__" else pytest.fail(f"{module} is in none of the rooms")
        )
    _, number, room = max(rooms)
    return number, room


@pytest.mark.parametrize("package", PACKAGES)
def test_a_room_imports_only_lower_rooms(package: str) -> None:
    wrong = []
    for module, path in our_modules().items():
        if module.split(".")[0] == package:
            height, room = level(module)
            for imported in sorted(imported_modules(path)):
                if imported.split(".")[0] == package:
                    other_height, other_room = level(imported)
                    if room != other_room and other_height >= height:
                        wrong.append(f"{module} ({room}) imports {imported} ({other_room})")
    assert wrong == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_of_the_table_exists(package: str) -> None:
    names = [room for line in ROOMS[package] for room in line]
    assert [n for n in names if not (ROOT / package / n).is_dir() and not (ROOT / package / f"{n}.py").exists()] == []


def test_modules_never_import_each_other_in_a_circle() -> None:
    graph = {module: imported_modules(path) - {module} for module, path in our_modules().items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def test_a_folder_has_few_enough_modules_to_see_at_once() -> None:
    sizes: dict[str, int] = {}
    for path in MODULES:
        if path.stem != "__init__":
            folder = name_of(path.parent)
            sizes[folder] = sizes.get(folder, 0) + 1
    assert {folder: size for folder, size in sizes.items() if size > MODULES_IN_A_FOLDER} == {}


def test_modules_and_functions_are_short() -> None:
    long = []
    for path in [*MODULES, *MODEL_FILES, *TEST_FILES]:
        count = len(path.read_text(encoding="utf-8").splitlines())
        if count > LINES_OF_A_MODULE:
            long.append(f"{name_of(path)}: {count} lines")
        if is_within(".".join(path.relative_to(ROOT).parts), "tests.fakes"):
            continue  # functions that are tables of another library's API
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = (node.end_lineno or node.lineno) - node.lineno + 1
                if count > LINES_OF_A_FUNCTION:
                    long.append(f"{name_of(path)}: {node.name} has {count} lines")
    assert long == []


@pytest.mark.parametrize("folder", TEST_FOLDERS)
def test_tests_share_code_only_through_support_and_fakes(folder: str) -> None:
    allowed = ("tests.support", "tests.fakes")
    wrong = {
        f"{name_of(path)} imports {name}"
        for path in TEST_FILES
        if name_of(path).startswith(f"tests/{folder}")
        for name in imports(path)
        if is_within(name, "tests") and name != "tests" and not any(is_within(name, room) for room in allowed)
    }
    assert wrong == set()
