"""Starts the measured servers: our stack from this or another source tree, llama.cpp's server, NVIDIA's front end."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from pydantic_settings import BaseSettings
from rich.console import Console

from benchmarks.load.http_recording import CompletionsEndpoint
from benchmarks.machine import machine_facts
from benchmarks.processes import FRONT_END, FRONT_END_AND_TRITON, TRITON, child_named
from benchmarks.systems.programs import ServerError, running_program
from build_engine.cli.progress_bar import TerminalProgress
from build_engine.cpu.build import BuildRequest, build_engine
from build_engine.cpu.default_model import find_model
from build_engine.cpu.inputs import default_output
from build_engine.targets.registry import find_target
from frontend.settings import FrontendSettings
from launcher.local.stack import Stack
from launcher.ports import free_ports
from launcher.settings import REPOSITORY_ROOT, StackSettings
from llm_pipeline.protocol.tensors import ENSEMBLE_MODEL
from llm_pipeline.runtime.settings import PipelineSettings

MODEL = "smollm2-135m-instruct"
API_KEY = "sk-benchmarks-only"
_PORTS = ("PORT", "TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT")
_NOT_REPORTED = {"API_KEY", "API_KEYS_FILE", "ENGINE_DIR", "RUN_DIR", "PUBLIC_URL", "HOST", *_PORTS}


@dataclass(frozen=True)
class Server:
    """A running server: its endpoint, and the processes that do its work."""

    endpoint: CompletionsEndpoint
    roots: Mapping[str, int]  # process ids by role; empty for a server that is known by URL only
    grpc_address: str | None = None


@contextmanager
def our_stack(run_dir: Path, engine_dir: Path, environment: Mapping[str, str]) -> Iterator[Server]:
    """Runs the stack of `make serve` with these settings on free ports."""
    ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
    with ExitStack() as running:
        with _environment(_stack_settings(ports, run_dir, engine_dir, environment)):
            stack = running.enter_context(Stack(StackSettings(), Console(quiet=True)).running())
        assert stack.frontend is not None
        assert stack.triton is not None
        yield Server(
            CompletionsEndpoint(f"{stack.base_url}/openai/v1", MODEL, API_KEY),
            {FRONT_END: _pid(stack.frontend.pid), TRITON: _pid(stack.triton.pid)},
            f"127.0.0.1:{ports['TRITON_GRPC_PORT']}",
        )


def _stack_settings(
    ports: Mapping[str, int], run_dir: Path, engine_dir: Path, environment: Mapping[str, str]
) -> dict[str, str]:
    return {
        **{name: str(port) for name, port in ports.items()},
        "API_KEY": API_KEY,
        "MODEL_NAME": MODEL,
        "ENGINE_DIR": str(engine_dir),
        "RUN_DIR": str(run_dir),
        **environment,
    }


def engine_of_tree(tree: Path, engine_dir: Path) -> Path:
    """Returns the other tree's own build of the engine, since its format may differ; without one, `engine_dir`."""
    if engine_dir.is_relative_to(REPOSITORY_ROOT):
        own = tree / engine_dir.relative_to(REPOSITORY_ROOT)
        return own if own.is_dir() else engine_dir
    return engine_dir


def check_tree(tree: Path) -> Path:
    """Returns the absolute path. Raises ValueError if it is no source tree with a virtual environment."""
    tree = tree.absolute()
    for needed in ("launcher/__main__.py", ".venv/bin/python"):
        if not (tree / needed).exists():
            raise ValueError(f"{tree / needed} does not exist. Use a checkout in which `make install` has been run.")
    return tree


@contextmanager
def other_stack(tree: Path, run_dir: Path, engine_dir: Path, environment: Mapping[str, str]) -> Iterator[Server]:
    """Runs the stack of another source tree, a checkout with a virtual environment of its own, on free ports."""
    ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
    values = _stack_settings(ports, run_dir, engine_of_tree(tree, engine_dir), environment)
    endpoint = CompletionsEndpoint(f"http://127.0.0.1:{ports['PORT']}/openai/v1", MODEL, API_KEY)
    with running_program(
        [str(tree / ".venv" / "bin" / "python"), "-m", "launcher"],
        folder=tree,
        environment={**os.environ, **values},
        log=run_dir / "launcher.log",
        is_ready=lambda: _completes(endpoint),
    ) as launcher:
        front_end, triton = (_child(launcher, name) for name in ("frontend", "tritonserver"))
        yield Server(endpoint, {FRONT_END: front_end, TRITON: triton}, f"127.0.0.1:{ports['TRITON_GRPC_PORT']}")


@contextmanager
def llama_cpp_server(program: Path, model: Path, options: Sequence[str], *, log: Path) -> Iterator[Server]:
    """Runs llama.cpp's server; docs/performance.md describes how to build it."""
    (port,) = free_ports(1)
    command = [str(program), "--model", str(model), "--host", "127.0.0.1", "--port", str(port), *options]
    with running_program(command, log=log, is_ready=lambda: responds(f"http://127.0.0.1:{port}/health")) as pid:
        yield Server(CompletionsEndpoint(f"http://127.0.0.1:{port}/v1", MODEL), {"llama-server": pid})


@contextmanager
def nvidia_front_end(
    folder: Path, python: str, engine_dir: Path, environment: Mapping[str, str], *, log: Path
) -> Iterator[Server]:
    """Runs NVIDIA's OpenAI front end on our model repository; Triton is a library in the same process.

    `folder` is python/openai of triton-inference-server/server. `python` has its requirements and the `tritonserver`
    package of a Triton build, and the stubs of that build can import llm_pipeline.
    """
    (port,) = free_ports(1)
    with running_program(
        nvidia_command(folder, python, port),
        environment={**os.environ, "ENGINE_DIR": str(engine_dir), **environment},
        log=log,
        is_ready=lambda: responds(f"http://127.0.0.1:{port}/health/ready"),
    ) as pid:
        endpoint = CompletionsEndpoint(f"http://127.0.0.1:{port}/v1", ENSEMBLE_MODEL, generates_max_tokens=True)
        yield Server(endpoint, {FRONT_END_AND_TRITON: pid})


def nvidia_command(folder: Path, python: str, port: int) -> list[str]:
    """Returns the command line of NVIDIA's OpenAI front end, on loopback, without a log line for each request."""
    return [
        *(python, str(folder / "openai_frontend" / "main.py")),
        *("--model-repository", str(REPOSITORY_ROOT / "model_repository")),
        *("--host", "127.0.0.1", "--openai-port", str(port), "--uvicorn-log-level", "warning"),
    ]


def llama_cpp_options(slots: int, tokens_per_slot: int) -> list[str]:
    """Returns options for a number of slots, one thread for each core, and continuous batching (the default)."""
    threads = str(machine_facts().cores)
    return [
        *("--parallel", str(slots)),
        *("--ctx-size", str(slots * tokens_per_slot)),
        *("--threads", threads, "--threads-batch", threads),
    ]


def remote_server(
    base_url: str, api_key: str | None, model: str | None, *, generates_max_tokens: bool = False
) -> Server:
    """Returns a server that is already running. Without a model name, the first of /models is used."""
    base_url = base_url.rstrip("/")
    model = model or _first_model(base_url, api_key)
    return Server(CompletionsEndpoint(base_url, model, api_key, generates_max_tokens), {})


def _first_model(base_url: str, api_key: str | None) -> str:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        response = httpx.get(f"{base_url}/models", headers=headers, timeout=10, trust_env=False).raise_for_status()
        models: Any = response.json()
        return str(models["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise ServerError(
            f"{base_url}/models lists no model ({error}). Name one with --baseline-model or --peer-model."
        ) from error


def responds(url: str) -> bool:
    """Returns whether a GET request succeeds."""
    try:
        return httpx.get(url, timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False  # not listening yet


def _completes(endpoint: CompletionsEndpoint) -> bool:
    """Returns whether the server completes a prompt, which every version of the stack does once it has started."""
    body = {"model": endpoint.model, "prompt": "Hello", "max_tokens": 1}
    headers = {"Authorization": f"Bearer {endpoint.api_key}"}
    try:
        url = f"{endpoint.base_url}/completions"
        return httpx.post(url, json=body, headers=headers, timeout=30, trust_env=False).is_success
    except httpx.TransportError:
        return False  # not listening yet


def build_benchmark_engine(console: Console) -> Path:
    """Builds the engine of `make serve`, or returns an existing valid one."""
    target, model = find_target("cpu"), find_model(None)
    output = REPOSITORY_ROOT / default_output(MODEL, target, "fp16")
    with TerminalProgress(console) as progress:
        return build_engine(BuildRequest(model, target, "fp16", output), progress).engine_dir


def settings_from_environment() -> dict[str, str]:
    """Returns the product's settings in the environment, which are part of what is measured."""
    readers: tuple[type[BaseSettings], ...] = (StackSettings, FrontendSettings, PipelineSettings)
    names = {name.upper() for reader in readers for name in reader.model_fields} - _NOT_REPORTED
    return {name: os.environ[name] for name in sorted(names) if os.environ.get(name)}


def secret(variable: str) -> str:
    """Returns the value of an environment variable. Raises ValueError if it is unset."""
    value = os.environ.get(variable)
    if not value:
        raise ValueError(f"The environment variable {variable} is not set.")
    return value


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables for the block: a stack's processes inherit their settings."""
    previous = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _child(parent: int, name: str) -> int:
    pid = child_named(parent, name)
    if pid is None:
        raise ServerError(f"The launcher has no child process {name}.")
    return pid


def _pid(pid: int | None) -> int:
    if pid is None:
        raise ServerError("A process of the stack is not running.")
    return pid
