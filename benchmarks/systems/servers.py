"""Starts the measured servers: our stack with given settings, and llama.cpp's server."""

from __future__ import annotations

import os
import subprocess
import time
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
from benchmarks.processes import FRONT_END, TRITON
from build_engine.cli.progress_bar import TerminalProgress
from build_engine.cpu.build import BuildRequest, build_engine
from build_engine.cpu.default_model import find_model
from build_engine.cpu.inputs import default_output
from build_engine.targets.registry import find_target
from frontend.settings import FrontendSettings
from launcher.local.stack import Stack
from launcher.ports import free_ports
from launcher.settings import REPOSITORY_ROOT, StackSettings
from llm_pipeline.runtime.settings import PipelineSettings

MODEL = "smollm2-135m-instruct"
API_KEY = "sk-benchmarks-only"
_PORTS = ("PORT", "TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT")
_NOT_REPORTED = {"API_KEY", "API_KEYS_FILE", "ENGINE_DIR", "RUN_DIR", "PUBLIC_URL", "HOST", *_PORTS}
_BASELINE_START_TIMEOUT_S = 120.0
_POLL_S = 0.1


class ServerError(Exception):
    """A server cannot be reached or does not start. The message names it and the cause."""


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
    values = {
        **{name: str(port) for name, port in ports.items()},
        "API_KEY": API_KEY,
        "MODEL_NAME": MODEL,
        "ENGINE_DIR": str(engine_dir),
        "RUN_DIR": str(run_dir),
        **environment,
    }
    with ExitStack() as running:
        with _environment(values):
            stack = running.enter_context(Stack(StackSettings(), Console(quiet=True)).running())
        assert stack.frontend is not None
        assert stack.triton is not None
        yield Server(
            CompletionsEndpoint(f"{stack.base_url}/openai/v1", MODEL, API_KEY),
            {FRONT_END: _pid(stack.frontend.pid), TRITON: _pid(stack.triton.pid)},
            f"127.0.0.1:{ports['TRITON_GRPC_PORT']}",
        )


@contextmanager
def llama_cpp_server(program: Path, model: Path, options: Sequence[str], *, log: Path) -> Iterator[Server]:
    """Runs llama.cpp's server; docs/performance.md describes how to build it."""
    (port,) = free_ports(1)
    command = [str(program), "--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += options
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        except OSError as error:
            raise ServerError(f"{program} cannot be started: {error}") from error
    try:
        endpoint = CompletionsEndpoint(f"http://127.0.0.1:{port}/v1", MODEL)
        _await_health(f"http://127.0.0.1:{port}/health", process, log)
        yield Server(endpoint, {"llama-server": process.pid})
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def llama_cpp_options(slots: int, tokens_per_slot: int) -> list[str]:
    """Returns options for a number of slots, one thread for each core, and continuous batching (the default)."""
    threads = str(machine_facts().cores)
    return [
        *("--parallel", str(slots)),
        *("--ctx-size", str(slots * tokens_per_slot)),
        *("--threads", threads, "--threads-batch", threads),
    ]


def remote_server(base_url: str, api_key: str | None, model: str | None) -> Server:
    """Returns a server that is already running. Without a model name, the first of /models is used."""
    base_url = base_url.rstrip("/")
    return Server(CompletionsEndpoint(base_url, model or _first_model(base_url, api_key), api_key), {})


def _first_model(base_url: str, api_key: str | None) -> str:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        response = httpx.get(f"{base_url}/models", headers=headers, timeout=10, trust_env=False).raise_for_status()
        models: Any = response.json()
        return str(models["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise ServerError(f"{base_url}/models lists no model ({error}). Name one with --baseline-model.") from error


def _await_health(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _BASELINE_START_TIMEOUT_S
    with httpx.Client(timeout=5, trust_env=False) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            try:
                if client.get(url).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass  # not listening yet
            time.sleep(_POLL_S)
    raise ServerError(
        f"The server of the baseline did not start. The end of {log}:\n{log.read_text(errors='replace')[-800:]}"
    )


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


def _pid(pid: int | None) -> int:
    if pid is None:
        raise ServerError("A process of the stack is not running.")
    return pid
