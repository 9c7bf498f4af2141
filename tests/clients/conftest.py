"""Each client runs as a process of its own, in .venv-clients, and is told a base URL, a key and a model: nothing else.

Whatever it wants from a hub or anywhere outside this machine goes to a proxy that does not exist, and fails at once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.integration.conftest import cpu_stack as cpu_stack
from tests.support.stack import MODEL, RunningStack

SCRIPTS = Path(__file__).parent / "scripts"
BIN = REPOSITORY / ".venv-clients" / "bin"
NO_NETWORK = {
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9"),
    "NO_PROXY": "127.0.0.1,localhost",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "ANONYMIZED_TELEMETRY": "False",
}
NO_HUB = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")


@dataclass(frozen=True)
class Clients:
    """Runs clients against one stack."""

    stack: RunningStack
    engine_dir: Path
    home: Path

    def run(self, command: list[str | Path], *, limit_s: float = 120, **environment: str) -> str:
        """Standard output of a client that must succeed."""
        variables = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "COLUMNS": "200",
            "CLIENT_BASE_URL": f"{self.stack.base_url}/openai/v1",
            "CLIENT_API_KEY": self.stack.api_key,
            "CLIENT_MODEL": MODEL,
            "TRITON_GRPC_URL": self.stack.triton_grpc_url,
            "TRITON_HTTP_URL": self.stack.triton_http_url,
            **NO_NETWORK,
            **NO_HUB,
            **environment,
        }
        done = subprocess.run(
            [str(part) for part in command],
            env=variables,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=limit_s,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == 0, f"{command[0]} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def script(self, name: str, *, python: Path = BIN / "python", **environment: str) -> dict[str, Any]:
        """What a script of ours found with the client's package: the JSON of its last line."""
        found: dict[str, Any] = json.loads(self.run([python, SCRIPTS / name], **environment).splitlines()[-1])
        return found

    @property
    def tokenizer_dir(self) -> Path:
        """The engine's tokenizer as Hugging Face's library loads it, for clients that count tokens themselves."""
        folder = self.home / "tokenizer"
        folder.mkdir(exist_ok=True)
        (folder / "tokenizer.json").write_bytes((self.engine_dir / "tokenizer.json").read_bytes())
        (folder / "tokenizer_config.json").write_text(
            '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}'
        )
        return folder


# openai-python has two: the newest, which this project develops with, and the one that litellm and llama-index ask for.
OPENAI_PYTHONS = [pytest.param(Path(sys.executable), id="newest"), pytest.param(BIN / "python", id="below-3")]


@pytest.fixture(scope="session")
def start_clients(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[RunningStack], Clients]:
    if not (BIN.parent / ".installed").exists():
        pytest.fail("The clients are not installed: run make clients (about 2 minutes, 1.8 GB in .venv-clients).")
    return lambda stack: Clients(stack, engine_dir, tmp_path_factory.mktemp("client"))


@pytest.fixture
def clients(cpu_stack: RunningStack, start_clients: Callable[[RunningStack], Clients]) -> Clients:
    """On the real model."""
    return start_clients(cpu_stack)


@pytest.fixture(scope="session")
def greedy_text(cpu_stack: RunningStack) -> str:
    """What every client must show for its eight greedy tokens."""
    answer = cpu_stack.complete(prompt="The capital of France is", max_tokens=8, temperature=0)
    text: str = answer.json()["choices"][0]["text"]
    assert text.strip()
    return text
