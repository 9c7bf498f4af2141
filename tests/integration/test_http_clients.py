"""Programs whose HTTP differs from that of Python libraries: the JDK's HttpClient and curl offer HTTP/2."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.front_end_process import KEY, MODEL, Address, running_front_end

JAVA = Path(__file__).with_name("http_clients") / "JdkHttpClient.java"
LIMIT_S = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    with running_front_end(tmp_path_factory.mktemp("server")) as address:
        yield address


def output_of(*command: str) -> str:
    """What a program prints. Skips the test if it is not installed."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} on PATH")
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def body_of(**fields: object) -> str:
    return json.dumps({"model": MODEL, "prompt": "Hi", "max_tokens": 3, **fields})


@pytest.mark.parametrize("stream", [False, True])
def test_jdk_http_client_completes(server: Address, stream: bool) -> None:
    if shutil.which("javac") is None:  # a JRE alone cannot run a source file
        pytest.skip("no JDK on PATH; Debian: apt-get install default-jdk-headless")
    printed = output_of("java", str(JAVA), f"{server.base_url}/v1/completions", KEY, body_of(stream=stream))
    assert printed.count("200 HTTP_1_1") == 2
    if stream:
        assert printed.count("data: [DONE]") == 2
    else:
        bodies = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
        assert [body["choices"][0]["text"] for body in bodies] == [" Paris, the"] * 2


@pytest.mark.parametrize("option", ["--http2", "--http1.1", "--http1.0"])
@pytest.mark.parametrize("stream", [False, True])
def test_curl_completes_with_every_version(server: Address, option: str, stream: bool) -> None:
    printed = output_of(
        *("curl", "-sS", "--noproxy", "*", option, f"{server.base_url}/v1/completions", "-w", "\n%{http_code}"),
        *("-H", f"Authorization: Bearer {KEY}", "-H", "Content-Type: application/json", "-d", body_of(stream=stream)),
    )
    assert printed.endswith("\n200")
    assert ("data: [DONE]" in printed) is stream
    assert " Paris" in printed
