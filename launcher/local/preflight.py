"""Checks the machine and the settings before anything starts; each finding names the problem and the remedy."""

from __future__ import annotations

import errno
import platform
import shutil
import socket
import sys
from pathlib import Path

from launcher.check_python import find_libpython_problem
from launcher.local.errors import PreflightError
from launcher.memory import available_memory
from launcher.settings import StackSettings
from llm_pipeline.engine_files.manifest import EngineManifest, ManifestError
from llm_pipeline.executors.cpu.engine.weights import F32_COPY_BYTES_PER_WEIGHT, WEIGHTS_NAME
from llm_pipeline.runtime.deployment import DeployedModel, Deployment
from llm_pipeline.runtime.deployment_errors import DeploymentError
from llm_pipeline.runtime.tracing_settings import TracingError, read_tracing_settings

_MIB = 2**20
_SHARED_MEMORY_MIB = 48  # for requests in flight, plus the next line for each model
_STUBS_SHARED_MEMORY_MIB = 16  # three stubs with 1 MiB each, and some growth
_SHARED_MEMORY = Path("/dev/shm")
_LOOPBACK = "127.0.0.1"
# Upper estimates. Measured: Triton 65 MiB and the front end 95; a model's three stubs 246; an engine 542 at its peak,
# with 257 MiB of weights. What a larger model needs in addition to its weights was not measured.
_SERVERS_MEMORY_MIB = 256
_STUBS_MEMORY_MIB = 320
_ENGINE_MEMORY_MIB = 512  # plus its weights and the KV cache
_WEIGHTS_FACTOR = 1.25
_F32_COPY_FACTOR = F32_COPY_BYTES_PER_WEIGHT // 2  # of f16 weights, where there is such a copy
_DEFAULT_WEIGHTS_MIB = 257  # of the default engine
_LOWEST_GLIBC = (2, 35)


def run_preflight(settings: StackSettings, *, shared_memory: Path = _SHARED_MEMORY) -> Deployment | None:
    """Runs every check and returns the deployment, or None if the settings name no deployment file.

    `shared_memory` is where a tmpfs is expected. Raises PreflightError with all findings at once, one a line.
    """
    deployment, problem = _read_deployment(settings)
    findings = [
        finding
        for finding in (
            problem,
            _check_platform(),
            find_libpython_problem(),
            *(
                _check_port(name, port, settings.host if name == "PORT" else _LOOPBACK)
                for name, port in settings.ports.items()
            ),
            _check_ports_differ(settings),
            _check_socket_paths(settings),
            *_check_models(settings, deployment),
            check_memory(settings, deployment),
            _check_tracing(),
            _check_shared_memory(deployment, shared_memory),
        )
        if finding
    ]
    if findings:
        raise PreflightError("\n".join(findings))
    return deployment


def _read_deployment(settings: StackSettings) -> tuple[Deployment | None, str | None]:
    if settings.deployment is None:
        return None, None
    try:
        deployment = Deployment.load(settings.deployment)
    except DeploymentError as error:
        return None, str(error)
    if not any(model.is_local for model in deployment.models):
        return None, (
            f"Every model of {settings.deployment} is served by a remote Triton, so none has to be started here. "
            "Start only the front end: `DEPLOYMENT=... python -m frontend`."
        )
    return deployment, None


def _check_platform() -> str | None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return (
            f"Triton's wheel contains a server for Linux on x86-64, not for {sys.platform} on {platform.machine()}. "
            "Use such a machine, a virtual machine or a container."
        )
    libc, version = platform.libc_ver()
    if libc == "glibc" and tuple(int(part) for part in version.split(".")[:2]) < _LOWEST_GLIBC:
        return f"Triton's wheel needs glibc 2.35 or newer; this system has {version}. Use a newer Linux distribution."
    return None


def _check_port(name: str, port: int, host: str) -> str | None:
    not_local = f"HOST={host} is not an address of this machine. Use 127.0.0.1, or 0.0.0.0 for all addresses."
    try:
        family, kind, protocol, _name, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror:
        return not_local
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except PermissionError:
            return f"Port {port} ({name}) needs root privileges. Choose one above 1023: `make serve {name}=...`."
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return not_local
            return (
                f"Port {port} ({name}) is in use. Stop the process that listens on it or choose another port: "
                f"`make serve {name}=...`."
            )
    return None


def _check_tracing() -> str | None:
    try:
        read_tracing_settings()
    except TracingError as error:
        return str(error)
    return None


def _check_ports_differ(settings: StackSettings) -> str | None:
    if len(set(settings.ports.values())) == len(settings.ports):
        return None
    ports = ", ".join(f"{name}={port}" for name, port in settings.ports.items())
    return f"Two of the ports are the same: {ports}. Choose different ports."


def _check_socket_paths(settings: StackSettings) -> str | None:
    addresses = settings.triton_addresses
    if not addresses.has_long_path:
        return None
    return (
        f"TRITON_INFERENCE=private needs sockets in {addresses.socket_dir}, a path that is too long for a socket. "
        "Set RUN_DIR to a shorter one."
    )


def _check_models(settings: StackSettings, deployment: Deployment | None) -> list[str | None]:
    if deployment is None:
        problem = _check_engine_dir(settings.executor, settings.engine_dir, "") if not settings.model else None
        return [_check_model(settings), problem] if not settings.deployment else [_check_model(settings)]
    return [
        _check_model(settings),
        *(
            _check_engine_dir(
                model.executor or settings.executor, model.engine_dir or settings.engine_dir, f"Model {model.name}: "
            )
            for model in _local_models(deployment)
        ),
        *(_check_triton(model) for model in deployment.models),
    ]


def _check_model(settings: StackSettings) -> str | None:
    if settings.model is None:
        return None
    others = {"ENGINE_DIR": settings.engine_dir, "DEPLOYMENT": settings.deployment}
    if named := [name for name, value in others.items() if value is not None]:
        return f"MODEL and {named[0]} are both set, and each names what is served. Remove one of them."
    if not settings.model.exists():
        return (
            f"MODEL={settings.model}: there is no such file or directory. Give the path of a GGUF file or of a Hugging "
            "Face model directory on this machine; nothing is downloaded."
        )
    if settings.executor.startswith("tensorrt_llm"):
        return (
            f"MODEL is for the CPU engine. For EXECUTOR={settings.executor}, build an engine and set ENGINE_DIR: "
            "`python -m build_engine build --target auto --model DIR`."
        )
    return None


def _check_engine_dir(executor: str, engine_dir: Path | None, which: str) -> str | None:
    """Without ENGINE_DIR, the default engine is built, which is for CPUs.

    A directory without an engine is found here, before Triton takes seconds and a page of its own log to report it.
    """
    if engine_dir is not None:
        try:
            EngineManifest.load(engine_dir)
        except ManifestError as error:
            return f"{which}{error}"
        return None
    if not executor.startswith("tensorrt_llm"):
        return None
    runtime = " --runtime pytorch" if executor == "tensorrt_llm_pytorch" else ""
    return (
        f"{which}EXECUTOR={executor} needs ENGINE_DIR, the directory of an engine for this machine's GPU. Build one: "
        f"`python -m build_engine build --target auto{runtime} --model DIR`."
    )


def _check_triton(model: DeployedModel) -> str | None:
    if model.is_local or model.triton:
        return None
    return f"Model {model.name}: kind {model.kind} needs `triton`, the host:port of NVIDIA's server."


def _local_models(deployment: Deployment) -> list[DeployedModel]:
    return [model for model in deployment.models if model.has_own_ensemble]


def check_memory(settings: StackSettings, deployment: Deployment | None) -> str | None:
    """Returns what is wrong if this start needs more memory than there is; None if there is enough."""
    needed = _SERVERS_MEMORY_MIB
    if deployment is None:
        needed += _model_memory_mib(settings)
    else:
        needed += sum(_model_memory_mib(_settings_of(model, settings)) for model in _local_models(deployment))
    memory = available_memory()
    available = memory.bytes // _MIB
    if available >= needed:
        return None
    if memory.limit_bytes is None:
        where, remedy = "are free", "Free some memory"
    else:
        where = f"are left of this container's or control group's {memory.limit_bytes // _MIB} MiB"
        remedy = "Raise that limit (docker: --memory)"
    return (
        f"{available} MiB of memory {where}; this start needs about {needed} MiB. {remedy}, lower "
        "CPU_KV_CACHE_GIB, set CPU_F32_COPY_MIB=0, or start without a model: `make serve EXECUTOR=scripted`."
    )


def _settings_of(model: DeployedModel, settings: StackSettings) -> StackSettings:
    """Returns the settings with the model's own in place of the stack's."""
    own = model.settings.model_dump(include={"cpu_kv_cache_gib", "cpu_f32_copy_mib"}, exclude_unset=True)
    overrides = {"executor": model.executor, "engine_dir": model.engine_dir}
    return settings.model_copy(update=own | {name: value for name, value in overrides.items() if value})


def _model_memory_mib(settings: StackSettings) -> int:
    if settings.executor != "cpu":
        return _STUBS_MEMORY_MIB
    weights = _weights_mib(settings.engine_dir)
    engine = _ENGINE_MEMORY_MIB + int(_WEIGHTS_FACTOR * weights)
    if (f32_copy := _F32_COPY_FACTOR * weights) <= settings.cpu_f32_copy_mib:
        engine += f32_copy
    return _STUBS_MEMORY_MIB + engine + int(settings.cpu_kv_cache_gib * 1024)


def _weights_mib(engine_dir: Path | None) -> int:
    """Returns the size of the weights; the default engine's if this one is unreadable, which decode reports."""
    try:
        return (engine_dir / WEIGHTS_NAME).stat().st_size // _MIB if engine_dir is not None else _DEFAULT_WEIGHTS_MIB
    except OSError:
        return _DEFAULT_WEIGHTS_MIB


def _check_shared_memory(deployment: Deployment | None, folder: Path) -> str | None:
    if not folder.is_dir():
        return "/dev/shm is missing, which Triton's Python backend needs. Mount a tmpfs there."
    free = shutil.disk_usage(folder).free // _MIB
    models = len(_local_models(deployment)) if deployment is not None else 1
    needed = _SHARED_MEMORY_MIB + models * _STUBS_SHARED_MEMORY_MIB
    if free >= needed:
        return None
    return (
        f"/dev/shm has {free} MiB free; Triton's Python backend needs {needed} MiB. "
        "Remove files left over there, or start the container with a larger --shm-size."
    )
