"""What must be there before anything starts. Each check that fails says what is missing and how to mend it."""

from __future__ import annotations

import errno
import platform
import shutil
import socket
import sys
from pathlib import Path

import psutil

from launcher.check_python import find_libpython_problem
from launcher.settings import StackSettings
from llm_pipeline.executors.cpu.engine.weights import F32_COPY_BYTES_PER_WEIGHT, WEIGHTS_NAME
from llm_pipeline.runtime.deployment import DeployedModel, Deployment
from llm_pipeline.runtime.deployment_errors import DeploymentError

_MIB = 2**20
_SHARED_MEMORY_MIB = 48  # room for what is under way, and for each model
_STUBS_SHARED_MEMORY_MIB = 16  # three stubs with 1 MiB each, and some growth
_SHARED_MEMORY = Path("/dev/shm")
_LOOPBACK = "127.0.0.1"
# Upper estimates. Seen: Triton 65 MiB and the front end 95; a model's three stubs 246; an engine 542 at its peak, with
# 257 MiB of weights. How much a larger model needs beside its weights was not measured.
_SERVERS_MEMORY_MIB = 256
_STUBS_MEMORY_MIB = 320
_ENGINE_MEMORY_MIB = 512  # and its weights, and the KV cache
_WEIGHTS_FACTOR = 1.25
_F32_COPY_FACTOR = F32_COPY_BYTES_PER_WEIGHT // 2  # of f16 weights, where there is such a copy
_DEFAULT_WEIGHTS_MIB = 257  # of the engine that is built when none is named
_LOWEST_GLIBC = (2, 35)


class PreflightError(Exception):
    """Something that the stack needs is not there; the message says what, and how to mend it."""


def run_preflight(settings: StackSettings) -> Deployment | None:
    """Run every check; PreflightError with all findings, so that nobody mends them one start at a time.

    The deployment, when the settings name a file of one.
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
            *_check_models(settings, deployment),
            _check_memory(settings, deployment),
            _check_shared_memory(deployment),
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
            f"Every model of {settings.deployment} has a Triton of its own, so there is none to start here. "
            "Start the front end alone: `DEPLOYMENT=... python -m frontend`."
        )
    return deployment, None


def _check_platform() -> str | None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return (
            f"Triton's wheel holds a server for Linux on x86-64, not for {sys.platform} on {platform.machine()}. "
            "Run this on such a machine, in a virtual machine or in a container."
        )
    libc, version = platform.libc_ver()
    if libc == "glibc" and tuple(int(part) for part in version.split(".")[:2]) < _LOWEST_GLIBC:
        return f"Triton's wheel needs glibc 2.35 or newer and this system has {version}. Use a newer Linux."
    return None


def _check_port(name: str, port: int, host: str) -> str | None:
    try:
        family, kind, protocol, _name, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror:
        return f"{host} (HOST) is no address of this machine. Use 127.0.0.1, or 0.0.0.0 for all of its addresses."
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except PermissionError:
            return f"Port {port} ({name}) needs privileges. Choose one above 1023: `make serve {name}=...`."
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return f"{host} (HOST) is no address of this machine. Use 127.0.0.1, or 0.0.0.0 for all its addresses."
            return (
                f"Port {port} ({name}) is in use. Stop what listens there or choose another: `make serve {name}=...`."
            )
    return None


def _check_ports_differ(settings: StackSettings) -> str | None:
    if len(set(settings.ports.values())) == len(settings.ports):
        return None
    return "Two of the ports are the same: " + ", ".join(f"{name}={port}" for name, port in settings.ports.items())


def _check_models(settings: StackSettings, deployment: Deployment | None) -> list[str | None]:
    if deployment is None:
        return [] if settings.deployment else [_check_engine_dir(settings.executor, settings.engine_dir, "")]
    return [
        _check_engine_dir(
            model.executor or settings.executor, model.engine_dir or settings.engine_dir, f"Model {model.name}: "
        )
        for model in _laid_out(deployment)
    ] + [_check_triton(model) for model in deployment.models]


def _check_engine_dir(executor: str, engine_dir: Path | None, which: str) -> str | None:
    """Without one the default engine is built, which is for CPUs."""
    if executor != "tensorrt_llm" or engine_dir is not None:
        return None
    return (
        f"{which}EXECUTOR=tensorrt_llm needs ENGINE_DIR, an engine for this machine's GPU: "
        "`python -m build_engine build --target auto --model DIR`."
    )


def _check_triton(model: DeployedModel) -> str | None:
    if model.is_local or model.triton:
        return None
    return f"Model {model.name}: kind {model.kind} needs triton, the host:port of NVIDIA's server."


def _laid_out(deployment: Deployment) -> list[DeployedModel]:
    return [model for model in deployment.models if model.is_local]


def _check_memory(settings: StackSettings, deployment: Deployment | None) -> str | None:
    needed = _SERVERS_MEMORY_MIB
    if deployment is None:
        needed += _model_memory_mib(settings)
    else:
        needed += sum(_model_memory_mib(_as_of(model, settings)) for model in _laid_out(deployment))
    available = psutil.virtual_memory().available // _MIB
    if available >= needed:
        return None
    return (
        f"{available} MiB of memory are free and this start needs about {needed}. Close something, set a smaller "
        "CPU_KV_CACHE_GIB, set CPU_F32_COPY_MIB=0, or try the path without a model: `make serve EXECUTOR=scripted`."
    )


def _as_of(model: DeployedModel, settings: StackSettings) -> StackSettings:
    """The settings with what the model has of its own."""
    own = model.settings.model_dump(include={"cpu_kv_cache_gib", "cpu_f32_copy_mib"}, exclude_unset=True)
    named = {"executor": model.executor, "engine_dir": model.engine_dir}
    return settings.model_copy(update=own | {name: value for name, value in named.items() if value})


def _model_memory_mib(settings: StackSettings) -> int:
    if settings.executor != "cpu":
        return _STUBS_MEMORY_MIB
    weights = _weights_mib(settings.engine_dir)
    engine = _ENGINE_MEMORY_MIB + int(_WEIGHTS_FACTOR * weights)
    if (f32_copy := _F32_COPY_FACTOR * weights) <= settings.cpu_f32_copy_mib:
        engine += f32_copy
    return _STUBS_MEMORY_MIB + engine + int(settings.cpu_kv_cache_gib * 1024)


def _weights_mib(engine_dir: Path | None) -> int:
    """Of an engine that can't be read, the default's: decode says what is wrong with it."""
    try:
        return (engine_dir / WEIGHTS_NAME).stat().st_size // _MIB if engine_dir is not None else _DEFAULT_WEIGHTS_MIB
    except OSError:
        return _DEFAULT_WEIGHTS_MIB


def _check_shared_memory(deployment: Deployment | None) -> str | None:
    if not _SHARED_MEMORY.is_dir():
        return "/dev/shm is missing; Triton's Python backend needs it. Mount a tmpfs there."
    free = shutil.disk_usage(_SHARED_MEMORY).free // _MIB
    models = len(_laid_out(deployment)) if deployment is not None else 1
    needed = _SHARED_MEMORY_MIB + models * _STUBS_SHARED_MEMORY_MIB
    if free >= needed:
        return None
    return (
        f"/dev/shm has {free} MiB free and Triton's Python backend needs {needed}. "
        "Remove what is left over there, or start the container with a larger --shm-size."
    )
