"""Dockerfiles and the compose file, checked without a docker engine: no image is built."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from rich.console import Console

from build_engine.gpu.planning.options import DEFAULT_TRTLLM
from frontend.settings import FrontendSettings
from launcher.gpu.launch import LaunchSettings
from launcher.local.stack import Stack
from launcher.local.triton_wheel import TRITON_STOP_TIMEOUT_S
from launcher.settings import StackSettings
from llm_pipeline.runtime.settings import PipelineSettings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
LOCKS = sorted((DOCKER / "requirements").glob("*.lock"))
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
TRITONS = ("triton", "triton-pytorch")
JOBS = {"build-engine"}  # it ends by itself, so there is no health to check

# Which program reads the environment of a service.
READ_BY = {
    "stack": (StackSettings, FrontendSettings, PipelineSettings),
    "triton": (LaunchSettings, PipelineSettings),
    "triton-pytorch": (LaunchSettings, PipelineSettings),
    "frontend": (FrontendSettings,),
    "build-engine": (),
}

dockerfiles = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
services = pytest.mark.parametrize("name", SERVICES)


def tool(name: str) -> str:
    """Runs a program of the dev dependencies from this Python's environment."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        pytest.skip(f"{name} is not installed here; it is one of the dev dependencies")
    return str(path)


@cache
def instructions(path: Path) -> list[tuple[str, str]]:
    """Returns (instruction, arguments) in order, with ARG defaults substituted."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line.split(maxsplit=1) for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    defaults = dict(rest.split("=", 1) for name, rest in lines if name == "ARG" and "=" in rest)
    return [
        (name, re.sub(r"\$\{(\w+)\}", lambda found: defaults.get(found[1], found[0]), rest).strip())
        for name, rest in lines
    ]


def all_of(path: Path, instruction: str) -> list[str]:
    return [rest for name, rest in instructions(path) if name == instruction]


def dockerfile_of(service: str) -> Path:
    return ROOT / str(SERVICES[service]["build"]["dockerfile"])


def pinned(lock: Path) -> dict[str, set[str]]:
    """Returns versions by name; a package may have two, for two versions of Python."""
    versions: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==([^\s\\;]+)", lock.read_text(encoding="utf-8"), re.MULTILINE):
        versions.setdefault(name, set()).add(version)
    return versions


# --- Dockerfiles -----------------------------------------------------------------------------------------------------


@dockerfiles
def test_hadolint_reports_no_finding(path: Path) -> None:
    command = [tool("hadolint"), "--no-color", "--config", str(DOCKER / "hadolint.yaml"), str(path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout + run.stderr) == (0, "")


@dockerfiles
def test_base_images_have_a_version(path: Path) -> None:
    stages: set[str] = set()
    for image, *alias in (rest.split(" AS ") for rest in all_of(path, "FROM")):
        if image not in stages:
            tag = image.rpartition("/")[2].partition(":")[2]
            assert re.search(r"\d", tag), f"{image} names no version"
        stages |= set(alias)


@dockerfiles
def test_copied_files_exist(path: Path) -> None:
    sources = [
        source
        for rest in all_of(path, "COPY")
        if "--from=" not in rest
        for source in [part for part in rest.split() if not part.startswith("--")][:-1]
    ]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []


@dockerfiles
def test_image_runs_as_a_numeric_user_other_than_root(path: Path) -> None:
    """Kubernetes' runAsNonRoot cannot resolve user names."""
    uid, _, gid = all_of(path, "USER")[-1].partition(":")
    assert int(uid) > 0
    assert int(gid) > 0


@dockerfiles
def test_image_has_a_health_check(path: Path) -> None:
    (check,) = all_of(path, "HEALTHCHECK")
    assert (check == "NONE") == (path.name.removesuffix(".Dockerfile") in JOBS)


@pytest.mark.parametrize("path", [*DOCKERFILES, *LOCKS, DOCKER / "compose.yaml"], ids=lambda path: path.name)
def test_no_package_registry_is_named(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"pypi|pythonhosted|--(extra-)?index-url|--find-links", text)


def test_build_context_excludes_environments_and_engines() -> None:
    """They take gigabytes."""
    ignored = set((ROOT / ".dockerignore").read_text(encoding="utf-8").split())
    made = re.findall(r"^(?:VENV|CLIENTS) := (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(made) == 2
    assert {*made, ".git", ".run", "tests", "benchmarks", "docs"} <= ignored
    copied = {source for path in DOCKERFILES for rest in all_of(path, "COPY") for source in rest.split()}
    assert not copied & ignored


# --- Versions --------------------------------------------------------------------------------------------------------


def test_tensorrt_llm_version_is_that_of_the_planner() -> None:
    assert f"TENSORRT_LLM_VERSION={DEFAULT_TRTLLM}" in all_of(DOCKER / "triton-gpu.Dockerfile", "ARG")
    (allowed,) = re.findall(r'^tensorrt-llm = \["tensorrt_llm(.+)"\]$', PYPROJECT, re.MULTILINE)
    assert DEFAULT_TRTLLM in SpecifierSet(allowed)


def test_open_mpi_copies_without_a_capability_that_the_container_lacks() -> None:
    """Its shared memory otherwise logs an error for each large message between ranks (open-mpi/ompi#4948)."""
    environment = " ".join(all_of(DOCKER / "triton-gpu.Dockerfile", "ENV"))
    assert "OMPI_MCA_btl_vader_single_copy_mechanism=none" in environment


def test_triton_tag_contains_the_tensorrt_llm_version() -> None:
    (tag,) = re.findall(r"^ARG TRITON_TAG=(.+)$", (DOCKER / "triton-gpu.Dockerfile").read_text(), re.MULTILINE)
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if re.match(rf"\| [^|]*\b{re.escape(tag)}\b", line)]
    assert f"| {DEFAULT_TRTLLM} |" in row


def test_image_of_the_pytorch_runtime_has_a_release_that_is_served_by_it() -> None:
    arguments = all_of(DOCKER / "triton-pytorch.Dockerfile", "ARG")
    (version,) = {part.partition("=")[2] for part in arguments if part.startswith("TENSORRT_LLM_VERSION=")}
    assert version in SpecifierSet(">=1.3.0rc26", prereleases=True)  # the first with TorchSampler's penalties and seed


def test_served_executor_is_that_of_the_image() -> None:
    for name in TRITONS:
        variables = " ".join(all_of(dockerfile_of(name), "ENV"))
        assert f"EXECUTOR={SERVICES[name]['environment']['EXECUTOR']} " in variables


@dockerfiles
def test_python_version_is_supported_by_the_package(path: Path) -> None:
    for image in all_of(path, "FROM"):
        if image.startswith("python:"):
            (allowed,) = re.findall(r'^requires-python = "(.+)"$', PYPROJECT, re.MULTILINE)
            assert image.split("-")[0].removeprefix("python:") in SpecifierSet(allowed)


def test_image_tags_have_the_version_of_the_package() -> None:
    (version,) = re.findall(r'^version = "(.+)"$', PYPROJECT, re.MULTILINE)
    for name, service in SERVICES.items():
        assert service["image"].endswith(f":${{VERSION:-{version}}}"), name
    assert f"SERVING_IMAGE=triton-completions/triton-gpu:{version}" in all_of(DOCKER / "build-engine.Dockerfile", "ARG")


@services
def test_build_arguments_have_the_defaults_of_the_dockerfile(name: str) -> None:
    defaults = {part.partition("=")[0]: part.partition("=")[2] for part in all_of(dockerfile_of(name), "ARG")}
    for argument, value in SERVICES[name]["build"].get("args", {}).items():
        assert re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) == defaults[argument]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_images_get_the_tested_versions(lock: Path) -> None:
    """`make lock` writes all lock files; an outdated one would ship untested versions."""
    tested = pinned(ROOT / "requirements" / "serve.lock")
    assert {
        name: versions for name, versions in pinned(lock).items() if name in tested and versions != tested[name]
    } == {}


@pytest.mark.parametrize(("lock", "extra"), [("frontend", "frontend"), ("triton", None)])
def test_lock_contains_the_requirements_of_pyproject(lock: str, extra: str | None) -> None:
    heading = r"^dependencies" if extra is None else rf"^{extra}"
    found = re.search(rf"{heading} = \[\n(.*?)^\]", PYPROJECT, re.MULTILINE | re.DOTALL)
    assert found
    names = set(re.findall(r'^\s+"([a-z0-9-]+)', found[1], re.MULTILINE))
    assert names <= set(pinned(DOCKER / "requirements" / f"{lock}.lock"))


# --- The compose file ------------------------------------------------------------------------------------------------


def test_compose_file_is_valid_by_its_schema() -> None:
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(DOCKER / "compose.yaml")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stdout


def test_compose_file_has_a_profile_for_each_stack() -> None:
    profiles = {name: service["profiles"] for name, service in SERVICES.items()}
    assert profiles == {
        "stack": ["cpu"],
        "triton": ["gpu"],
        "triton-pytorch": ["pytorch"],
        "frontend": ["gpu", "pytorch"],
        "build-engine": ["build"],
    }


@services
def test_containers_are_restricted(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "pid", "ipc"} & set(service)
    assert service["user"] == all_of(dockerfile_of(name), "USER")[-1]


@services
def test_only_the_front_end_is_published_on_loopback_only(name: str) -> None:
    ports = SERVICES[name].get("ports", [])
    assert bool(ports) == (name in {"stack", "frontend"})
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_triton_is_reachable_by_the_front_end_only() -> None:
    """Triton has no authentication."""
    assert all(set(SERVICES[name]["networks"]) == {"inside"} for name in TRITONS)
    assert COMPOSE["networks"]["inside"]["internal"] is True
    inside = {name for name, service in SERVICES.items() if "inside" in service.get("networks", [])}
    assert inside == {*TRITONS, "frontend"}


def test_front_end_finds_either_triton_by_the_same_name() -> None:
    assert SERVICES["frontend"]["environment"]["TRITON_GRPC_URL"] == "${TRITON_GRPC_URL:-triton:8001}"
    assert SERVICES["triton-pytorch"]["networks"]["inside"]["aliases"] == ["triton"]


@services
def test_environment_variables_are_settings(name: str) -> None:
    known = {field.upper() for settings in READ_BY[name] for field in settings.model_fields}
    assert set(SERVICES[name].get("environment", {})) - known == set()


@services
def test_api_keys_are_secrets_instead_of_variables(name: str) -> None:
    environment = SERVICES[name].get("environment", {})
    assert "API_KEY" not in environment
    has_keys = name in {"stack", "frontend"}
    assert environment.get("API_KEYS_FILE") == ("/run/secrets/api_keys" if has_keys else None)
    assert SERVICES[name].get("secrets") == (["api_keys"] if has_keys else None)


def test_directories_that_the_launcher_writes_are_on_a_tmpfs() -> None:
    """The root is read-only: logs, and the model repository that is rendered for a deployment."""
    (run_dir,) = re.findall(r"RUN_DIR=(\S+)", (DOCKER / "cpu.Dockerfile").read_text(encoding="utf-8"))
    mounted = {mount.partition(":")[0] for mount in SERVICES["stack"]["tmpfs"]}
    assert {f"{run_dir}/logs", f"{run_dir}/model_repository"} <= mounted
    command = (DOCKER / "README.md").read_text(encoding="utf-8")
    assert {mount for mount in mounted if f"--tmpfs {mount}" not in command} == set()


def test_front_end_waits_for_a_loaded_engine_of_either_runtime() -> None:
    """A service of another profile is not started, so it can't be required."""
    healthy = {"condition": "service_healthy", "required": False}
    assert SERVICES["frontend"]["depends_on"] == dict.fromkeys(TRITONS, healthy)


@pytest.mark.parametrize(("name", "shm_size"), [("triton", "2gb"), ("triton-pytorch", "8gb"), ("build-engine", "2gb")])
def test_gpu_services_reserve_a_gpu(name: str, shm_size: str) -> None:
    (device,) = SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "${GPU_COUNT:-1}", "capabilities": ["gpu"]}
    assert SERVICES[name]["ulimits"] == {"memlock": -1, "stack": 67108864}
    assert SERVICES[name]["shm_size"] == shm_size


@pytest.mark.parametrize("name", TRITONS)
def test_engines_are_mounted_read_only_for_serving(name: str) -> None:
    mounts = [volume for volume in SERVICES[name]["volumes"] if isinstance(volume, dict)]
    assert mounts
    assert all(mount["read_only"] is True for mount in mounts)


def test_model_directory_has_one_path_where_it_is_built_and_served() -> None:
    """The links of an engine directory are absolute."""
    mounted = {
        name: mount["target"]
        for name, service in SERVICES.items()
        for mount in service.get("volumes", [])
        if isinstance(mount, dict) and "MODEL_DIR" in mount["source"]
    }
    assert mounted == {"triton-pytorch": "/model", "build-engine": "/model"}


def test_grace_periods_cover_the_drain() -> None:
    def seconds(name: str) -> int:
        return int(SERVICES[name]["stop_grace_period"].removesuffix("s"))

    assert seconds("frontend") > SERVICES["frontend"]["environment"]["DRAIN_TIMEOUT_S"] + 7
    for name in TRITONS:
        assert seconds(name) > SERVICES[name]["environment"]["TRITON_EXIT_TIMEOUT_S"]
    drain_timeout_s = SERVICES["stack"]["environment"]["DRAIN_TIMEOUT_S"]
    stack = Stack(StackSettings(drain_timeout_s=drain_timeout_s), Console(quiet=True))
    assert seconds("stack") > stack.frontend_stop_timeout_s + TRITON_STOP_TIMEOUT_S


def test_env_example_has_the_defaults_of_the_compose_file() -> None:
    used = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", (DOCKER / "compose.yaml").read_text(encoding="utf-8")))
    example = (DOCKER / ".env.example").read_text(encoding="utf-8")
    assert dict(re.findall(r"^(\w+)=(.*)$", example, re.MULTILINE)) == used
