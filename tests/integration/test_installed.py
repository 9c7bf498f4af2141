"""The wheel serves without a clone: installed into a fresh environment, started in an empty directory.

The packages are those of the lock file, as `make serve` installs them (docs/decisions/0003).
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hatchling.builders.wheel import WheelBuilder

from launcher.ports import free_ports
from tests.support.launcher_process import READY_LINE, read_until

pytestmark = [pytest.mark.triton, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
_PORTS = ("PORT", "TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of a fresh environment with the wheel. Skips if pip reaches no package index and no cache."""
    folder = tmp_path_factory.mktemp("installed")
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(folder))
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True, timeout=120)
    pip = [str(folder / "venv" / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    lock = ROOT / "requirements" / "serve.lock"
    packages = subprocess.run(
        [*pip, "--no-deps", "--require-hashes", "--requirement", str(lock)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    if packages.returncode != 0:
        pytest.skip(f"pip cannot install the locked packages: {packages.stderr.strip().splitlines()[-1]}")
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True, timeout=120)
    return folder / "venv" / "bin"


def environment() -> dict[str, str]:
    """No setting of this test run, and no path to the checkout."""
    return {name: value for name, value in os.environ.items() if name in {"HOME", "PATH", "LANG"}}


@pytest.fixture(scope="module")
def server(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The directory and the Ready block of `triton-completions serve`."""
    folder = tmp_path_factory.mktemp("empty")
    ports = [f"{name}={port}" for name, port in zip(_PORTS, free_ports(4), strict=True)]
    process = subprocess.Popen(
        [programs / "triton-completions", "serve", *ports],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield folder, read_until(process, READY_LINE)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert not (folder / ".run" / "server.json").exists()


def test_server_answers_with_the_default_model(server: tuple[Path, str]) -> None:
    folder, printed = server
    address = json.loads((folder / ".run" / "server.json").read_text())
    body = {"model": "smollm2-135m-instruct", "prompt": "The capital of France is", "max_tokens": 2, "temperature": 0}
    headers = {"Authorization": f"Bearer {address['api_key']}"}
    answer = httpx.post(f"{address['base_url']}/completions", json=body, headers=headers, trust_env=False, timeout=60)
    assert answer.json()["choices"][0]["text"].startswith(" Paris")
    assert re.search(r"Ready\. smollm2-135m-instruct on http://127\.0\.0\.1:\d+\n", printed)
    assert re.search(r"  playground  http://127\.0\.0\.1:\d+/#key=sk-", printed)


def test_everything_lies_in_the_directory_of_the_start(server: tuple[Path, str]) -> None:
    folder, _ = server
    assert [path.name for path in folder.iterdir()] == [".run"]
    assert (folder / ".run" / "engines" / "smollm2-135m-instruct" / "cpu-fp16" / "manifest.json").is_file()


def test_playground_and_documents_are_served(server: tuple[Path, str]) -> None:
    folder, _ = server
    base_url = json.loads((folder / ".run" / "server.json").read_text())["base_url"].removesuffix("/openai/v1")
    for path in ("/", "/playground/main.js", "/docs", "/openai/openapi.json"):
        assert httpx.get(base_url + path, trust_env=False, timeout=60).status_code == 200


@pytest.mark.parametrize("program", [["triton-completions", "complete"], ["complete"]], ids=" ".join)
def test_command_line_finds_the_server_of_the_directory(
    programs: Path, server: tuple[Path, str], program: list[str]
) -> None:
    folder, _ = server
    command = [str(programs / program[0]), *program[1:], "The capital of France is", "-n", "2", "-t", "0", "--quiet"]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(" Paris")
