"""The real stack for tests: Triton, the three models and the front end as processes, on free ports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI
from rich.console import Console

from launcher.local.processes import ChildProcess
from launcher.local.stack import Stack
from launcher.ports import free_ports
from launcher.settings import StackSettings

MODEL = "smollm2-135m-instruct"
API_KEY = "sk-integration-tests-only"
_OPENER = build_opener(ProxyHandler({}))


@dataclass(frozen=True)
class RunningStack:
    """A running stack: its addresses, its key, its processes, and clients for it."""

    base_url: str
    api_key: str
    triton_grpc_url: str
    triton_http_url: str
    triton_metrics_url: str
    stack: Stack

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the front end."""
        host, port = self.base_url.removeprefix("http://").split(":")
        return host, int(port)

    @property
    def frontend(self) -> ChildProcess:
        assert self.stack.frontend is not None
        return self.stack.frontend

    @property
    def triton(self) -> ChildProcess:
        assert self.stack.triton is not None
        return self.stack.triton

    @property
    def completions_url(self) -> str:
        return f"{self.base_url}/openai/v1/completions"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"}

    def client(self, timeout_s: float = 60) -> httpx.Client:
        # Plain HTTP needs no certificates, and loading them takes 20 ms each time.
        return httpx.Client(
            base_url=self.base_url, headers=self.headers, timeout=timeout_s, trust_env=False, verify=False
        )

    def openai(self, **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.base_url}/openai/v1", api_key=self.api_key, max_retries=0, **options)

    def async_openai(self, **options: Any) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.base_url}/openai/v1", api_key=self.api_key, max_retries=0, **options)

    def complete(self, **body: object) -> httpx.Response:
        """One non-streaming completion."""
        with self.client() as client:
            return client.post("/openai/v1/completions", json={"model": MODEL, **body})

    def chat(self, **body: object) -> httpx.Response:
        """One non-streaming chat completion."""
        with self.client() as client:
            return client.post("/openai/v1/chat/completions", json={"model": MODEL, **body})

    @property
    def active_requests(self) -> float:
        """Requests that have a slot in decode."""
        return self.decode_metric("decode_active_requests")

    def decode_metric(self, name: str) -> float:
        """A value of decode's own metrics, from Triton."""
        # Read hundreds of times a second: httpx would take as much CPU as what is measured.
        with _OPENER.open(f"{self.triton_metrics_url}/metrics", timeout=20) as answer:
            text = answer.read().decode()
        for line in text.splitlines():
            if line.startswith(f"{name} ") or line.startswith(f"{name}{{"):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"Triton has no metric {name}")


@contextmanager
def running_stack(run_dir: Path, engine_dir: Path, **environment: str) -> Iterator[RunningStack]:
    """Runs a stack with these settings in its environment. Its ports are free ones unless they are among them."""
    names = ("PORT", "TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    values = {
        **{name: str(port) for name, port in ports.items()},
        **({} if "API_KEYS_FILE" in environment else {"API_KEY": API_KEY}),
        "MODEL_NAME": MODEL,
        "ENGINE_DIR": str(engine_dir),
        "RUN_DIR": str(run_dir),
        **environment,
    }
    with pytest.MonkeyPatch.context() as patch, ExitStack() as running:
        for name, value in values.items():
            patch.setenv(name, value)
        stack = Stack(StackSettings(), Console(quiet=True))
        running.enter_context(stack.running())
        patch.undo()  # only this stack's processes get its settings
        yield RunningStack(
            base_url=stack.base_url,
            api_key=API_KEY,
            triton_grpc_url=f"127.0.0.1:{values['TRITON_GRPC_PORT']}",
            triton_http_url=f"http://127.0.0.1:{values['TRITON_HTTP_PORT']}",
            triton_metrics_url=f"http://127.0.0.1:{values['TRITON_METRICS_PORT']}",
            stack=stack,
        )
