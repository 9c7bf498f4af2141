"""The servers of one engine: Triton by `launcher.gpu`, as in the GPU image, and the front end beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import httpx
import psutil

from launcher.gpu.launch import LaunchSettings
from launcher.local import triton_wheel
from launcher.ports import free_ports
from launcher.settings import StackSettings
from llm_pipeline.engine_files.manifest import EngineManifest
from llm_pipeline.runtime.subprocesses import end_with_parent
from scripts.prove_on_gpu.context import ROOT, Context, Runtime, tail_of
from scripts.prove_on_gpu.outcome import StepFailedError

EXECUTORS: dict[Runtime, str] = {"engine": "tensorrt_llm", "pytorch": "tensorrt_llm_pytorch"}
API_KEY = "sk-prove-on-gpu"
_STOP_TIMEOUT_S = 60
_POLL_S = 0.1
_SHORT_PROMPT_TOKENS = 24
_OPENER = build_opener(ProxyHandler({}))


@dataclass(frozen=True)
class Ports:
    """The ports of one server."""

    http: int
    grpc: int
    metrics: int
    front_end: int

    @classmethod
    def free(cls) -> Ports:
        """Returns ports that nothing listens on."""
        return cls(*free_ports(4))


class Server:
    """Two processes: the launcher of Triton and the front end. The front end outlives restarts of the launcher."""

    def __init__(self, context: Context, runtime: Runtime, engine_dir: Path) -> None:
        self.engine_dir = engine_dir
        self.manifest = EngineManifest.load(engine_dir)
        self.ports = Ports.free()
        self._context = context
        self._runtime = runtime
        self._starts = 0
        self.launcher = self._start_launcher()
        self.front_end = self._start("front-end", [sys.executable, "-m", "frontend"], self._front_end_environment())

    @property
    def base_url(self) -> str:
        """Base URL of the API."""
        return f"http://127.0.0.1:{self.ports.front_end}"

    def left_s(self) -> float:
        """Returns the seconds that the running step has left. Raises StepFailedError when there are none."""
        return self._context.left_s()

    @property
    def longest_completion(self) -> int:
        """Tokens that a completion of a short prompt may have."""
        return self.manifest.limits.context_length - _SHORT_PROMPT_TOKENS

    @property
    def launcher_log(self) -> Path:
        """Log of the current launcher and its Triton."""
        return self._log(f"triton-{self._starts}")

    def restart(self) -> None:
        """Starts the launcher again after it has ended, as a container's restart policy does."""
        self.launcher = self._start_launcher()

    def wait_until_ready(self) -> float:
        """Waits for the front end's readiness, for which every stage has answered, and returns the seconds it took.

        Raises StepFailedError at the step's limit, or if a process ends.
        """
        started = time.monotonic()
        with self.client() as client:
            while not self._is_ready(client):
                for name, process in (("Triton", self.launcher), ("The front end", self.front_end)):
                    if process.poll() is not None:
                        log = self.launcher_log if process is self.launcher else self._log("front-end")
                        status = process.returncode
                        raise StepFailedError(f"{name} exited with status {status} at its start:\n{tail_of(log)}")
                time.sleep(min(_POLL_S, self._context.left_s()))
        return time.monotonic() - started

    @staticmethod
    def _is_ready(client: httpx.Client) -> bool:
        try:
            return client.get("/health/ready", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def client(self, timeout_s: float = 60) -> httpx.Client:
        """Returns an HTTP client of the front end, to be closed."""
        headers = {"Authorization": f"Bearer {API_KEY}"}
        return httpx.Client(base_url=self.base_url, headers=headers, timeout=timeout_s, trust_env=False, verify=False)

    def active_requests(self) -> float:
        """Returns the requests that decode has not seen the engine's end of, from Triton's metrics."""
        # Read hundreds of times a second, for which httpx would take too much CPU.
        with _OPENER.open(f"http://127.0.0.1:{self.ports.metrics}/metrics", timeout=10) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(("decode_active_requests ", "decode_active_requests{")):
                    return float(line.rsplit(" ", 1)[1])
        raise StepFailedError("Triton's metrics have no decode_active_requests.")

    def processes(self) -> list[psutil.Process]:
        """Returns every process below the launcher."""
        return psutil.Process(self.launcher.pid).children(recursive=True)

    def worker(self) -> tuple[str, psutil.Process]:
        """Returns the process that runs the engine, with its kind: a rank that TensorRT-LLM has spawned, or decode's
        stub, which then runs the engine itself.
        """
        stub: psutil.Process | None = None
        for process in self.processes():
            try:
                words = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if "mpi4py.futures.server" in words or "trtllmExecutorWorker" in words:
                return "worker rank", process
            if "/decode/1/model.py" in words:
                stub = process
        if stub is None:
            raise StepFailedError("No process of decode is below the launcher.")
        return "stub of decode", stub

    def stop(self) -> None:
        """Ends both, the front end first."""
        for process in (self.front_end, self.launcher):
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(_STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    _kill_tree(process)

    def _start_launcher(self) -> subprocess.Popen[bytes]:
        self._starts += 1
        return self._start(
            f"triton-{self._starts}", [sys.executable, "-m", "launcher.gpu"], self._launcher_environment()
        )

    def _start(self, name: str, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with self._log(name).open("wb") as log:
            return subprocess.Popen(
                command,
                # Triton's stubs import from their working directory, which is how a stand-in is found.
                cwd=self._context.options.stand_ins or ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - one system call, which takes no lock
            )

    def _log(self, name: str) -> Path:
        return self._context.logs / f"{self._runtime}-{name}.log"

    def _launcher_environment(self) -> dict[str, str]:
        base = _triton_environment(self._context)
        return {
            **base,
            "ENGINE_DIR": str(self.engine_dir),
            "EXECUTOR": EXECUTORS[self._runtime],
            "TRTLLM_GUIDED_DECODING": "xgrammar",
            "TRITON_HTTP_PORT": str(self.ports.http),
            "TRITON_GRPC_PORT": str(self.ports.grpc),
            "TRITON_METRICS_PORT": str(self.ports.metrics),
        }

    def _front_end_environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PORT": str(self.ports.front_end),
            "TRITON_GRPC_PORT": str(self.ports.grpc),
            "API_KEY": API_KEY,
            "MODEL_NAME": self.manifest.model_name,
            "ENGINE_DIR": str(self.engine_dir),
            "EXECUTOR": EXECUTORS[self._runtime],
        }


def _triton_environment(context: Context) -> dict[str, str]:
    """Returns the environment of the launcher: with the server of NVIDIA's image, or else that of the wheel."""
    default: Any = LaunchSettings.model_fields["tritonserver"].default
    if "TRITONSERVER" in os.environ or Path(default).exists():
        return dict(os.environ)
    settings = StackSettings(run_dir=context.options.output)
    root = triton_wheel.find_server_root()
    return {
        **triton_wheel.environment(settings, None),
        "TRITONSERVER": str(root / "bin" / "tritonserver"),
        "TRITON_BACKENDS": str(triton_wheel.prepare_backends(context.options.output)),
    }


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.kill()
    process.wait()
