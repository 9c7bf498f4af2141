"""Runs real client packages as processes in .venv-clients; each gets a base URL, a key and a model, nothing else.

Requests to a hub, or to any host outside this machine, go to a proxy that does not exist and fail at once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.stack import MODEL, RunningStack

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = REPOSITORY / "tests" / "clients" / "scripts"
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

    def run(
        self, command: list[str | Path], environment: Mapping[str, str] | None = None, *, limit_s: float = 120
    ) -> str:
        """Runs a client to its end and returns its standard output. AssertionError unless it succeeds."""
        variables = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "COLUMNS": "200",
            "CLIENT_BASE_URL": f"{self.stack.base_url}/openai/v1",
            "CLIENT_API_KEY": self.stack.api_key,
            "CLIENT_MODEL": MODEL,
            "NODE_CLIENTS": str(BIN.parent / "node"),
            "TRITON_GRPC_URL": self.stack.triton_grpc_url,
            "TRITON_HTTP_URL": self.stack.triton_http_url,
            **NO_NETWORK,
            **NO_HUB,
            **(environment or {}),
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
        """Runs one of SCRIPTS with the client's package and returns the JSON of its last line."""
        return self._report([python, SCRIPTS / name], environment)

    def node(self, name: str) -> dict[str, Any]:
        """Runs one of SCRIPTS on Node.js with the packages of .venv-clients/node; the result as of `script`."""
        return self._report([BIN / "node", SCRIPTS / name], {})

    def _report(self, command: list[str | Path], environment: Mapping[str, str]) -> dict[str, Any]:
        last_line = self.run(command, environment).rstrip("\n").rpartition("\n")[2]  # splitlines splits at U+2028
        found: dict[str, Any] = json.loads(last_line)
        return found

    @property
    def tokenizer_dir(self) -> Path:
        """The engine's tokenizer in Hugging Face's form, for clients that count tokens themselves."""
        folder = self.home / "tokenizer"
        folder.mkdir(exist_ok=True)
        for name in ("tokenizer.json", "chat_template.jinja"):
            (folder / name).write_bytes((self.engine_dir / name).read_bytes())
        (folder / "tokenizer_config.json").write_text(
            '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}'
        )
        return folder


# Two versions of openai-python: the newest, which is a dev dependency, and the one that litellm and llama-index need.
OPENAI_PYTHONS = [pytest.param(Path(sys.executable), id="newest"), pytest.param(BIN / "python", id="below-3")]
