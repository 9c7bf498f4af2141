"""The program `complete` as a process, against a running stack."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.stack import MODEL, RunningStack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

PROGRAM = str(Path(sys.executable).parent / "complete")
GREEDY = ["--temperature", "0", "--max-tokens", "12"]


def environment(stack: RunningStack, **values: str) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG"}}
    return {**known, "OPENAI_BASE_URL": f"{stack.base_url}/openai/v1", "OPENAI_API_KEY": stack.api_key, **values}


def complete(
    stack: RunningStack, *words: str, piped: bytes | None = None, values: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    stdin: dict[str, Any] = {"stdin": subprocess.DEVNULL} if piped is None else {"input": piped}
    return subprocess.run(
        [PROGRAM, *words],
        env=environment(stack, **(values or {})),
        capture_output=True,
        timeout=60,
        check=False,
        **stdin,
    )


@pytest.mark.parametrize("how", ["--stream", "--no-stream"])
def test_text_equals_the_servers_byte_for_byte(cpu_stack: RunningStack, how: str) -> None:
    expected = cpu_stack.complete(prompt="Once upon a time", temperature=0, max_tokens=12).json()["choices"][0]["text"]
    done = complete(cpu_stack, "Once upon a time", *GREEDY, how)
    assert (done.returncode, done.stdout) == (0, expected.encode())
    assert b"12 tokens in" in done.stderr
    assert b"tokens/s" in done.stderr
    assert done.stderr.endswith(b"length\n")
    assert b"\x1b" not in done.stdout + done.stderr  # no terminal, no colours


@pytest.mark.parametrize("words", [[], ["-"]])
def test_the_prompt_comes_from_standard_input(cpu_stack: RunningStack, words: list[str]) -> None:
    argument = complete(cpu_stack, "The capital of France is", *GREEDY, "--quiet")
    piped = complete(cpu_stack, *words, *GREEDY, "--quiet", piped=b"The capital of France is\n")
    assert (piped.returncode, piped.stdout) == (0, argument.stdout)
    assert argument.stderr == piped.stderr == b""


def test_the_prompt_comes_from_a_file(scripted_stack: RunningStack, tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text("Once")
    done = complete(scripted_stack, "--file", str(tmp_path / "story.txt"), "--max-tokens", "4", "--json", "--no-stream")
    assert json.loads(done.stdout)["usage"]["completion_tokens"] == 4


def test_json_is_one_object_a_line(scripted_stack: RunningStack) -> None:
    done = complete(scripted_stack, "Hi", "--max-tokens", "4", "--set", "return_token_ids=true", "--json", "--quiet")
    *chunks, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(len(chunk["choices"][0]["token_ids"]) for chunk in chunks) == 4
    assert last["usage"]["completion_tokens"] == 4


def test_choices_are_printed_in_order(cpu_stack: RunningStack) -> None:
    fields = {"temperature": 1, "seed": 3, "max_tokens": 6, "n": 2}
    whole = cpu_stack.complete(prompt="Once upon", **fields).json()["choices"]
    done = complete(cpu_stack, "Once upon", "-t", "1", "--seed", "3", "-n", "6", "--choices", "2", "-q")
    assert done.stdout.decode() == "\n".join(choice["text"] for choice in whole)


def test_error_messages_are_the_servers(scripted_stack: RunningStack) -> None:
    message = scripted_stack.complete(prompt="Hi", temperature=3).json()["error"]["message"]
    done = complete(scripted_stack, "Hi", "--temperature", "3", "--model", MODEL)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (1, b"", f"error: {message}\n")


@pytest.mark.parametrize(
    ("words", "values", "status", "message"),
    [
        (["Hi"], {"OPENAI_API_KEY": "wrong"}, 1, "does not accept this API key"),
        (["Hi"], {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}, 3, "No answer from http://127.0.0.1:9/v1"),
        (["Hi", "--model", "none"], {}, 1, "This model does not exist"),
        (["Hi", "--set", "logprobs"], {}, 2, "name=value"),
        (["Hi", "--no-such-option"], {}, 2, "No such option"),
        (["Hi", "--max-tokens", "many"], {}, 2, "--max-tokens"),
    ],
)
def test_exit_status_for_each_kind_of_error(
    scripted_stack: RunningStack, words: list[str], values: dict[str, str], status: int, message: str
) -> None:
    done = complete(scripted_stack, *words, values=values)
    assert (done.returncode, done.stdout) == (status, b"")
    assert message in done.stderr.decode()


def test_server_of_the_directory_is_found_with_its_key(scripted_stack: RunningStack) -> None:
    """The launcher has written its address and key; a key for another service in the environment is not sent."""
    values = {"RUN_DIR": str(scripted_stack.stack.settings.run_dir), "OPENAI_BASE_URL": "", "OPENAI_API_KEY": "foreign"}
    done = complete(scripted_stack, "Hi", "--max-tokens", "2", "--quiet", values=values)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout


def test_unknown_field_is_named_by_the_servers_own_document(scripted_stack: RunningStack) -> None:
    done = complete(scripted_stack, "Hi", "-n", "2", "--quiet", "--set", "temprature=0", "--set", "user=me")
    assert done.returncode == 0
    assert done.stderr.startswith(b"note: The server has no field temprature,")
    assert done.stderr.endswith(b"Did you mean temperature?\n")


def start_long(stack: RunningStack, *words: str) -> subprocess.Popen[bytes]:
    """Starts a completion of 2,000 tokens (10 s) and returns after the first token."""
    command = [PROGRAM, "Hi", "--max-tokens", "2000", *words]
    running = subprocess.Popen(
        command, env=environment(stack), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert running.stdout is not None
    assert running.stdout.read(1)
    return running


def is_idle(stack: RunningStack) -> bool:
    return stack.decode_metric("decode_active_requests") == 0


def test_ctrl_c_ends_the_program_and_frees_the_slot(scripted_stack: RunningStack) -> None:
    cancelled = scripted_stack.decode_metric("decode_cancelled_requests_total")
    running = start_long(scripted_stack)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=10)
    assert running.returncode == 130
    assert said.endswith(b"cancelled\n")
    wait_until(lambda: is_idle(scripted_stack), limit_s=5, what="the slot is free")
    assert scripted_stack.decode_metric("decode_cancelled_requests_total") == cancelled + 1


def test_a_closed_pipe_ends_the_program_without_an_error_message(scripted_stack: RunningStack) -> None:
    running = start_long(scripted_stack, "--quiet")
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.close()
    assert running.wait(timeout=10) == 141
    assert running.stderr.read() == b""
    running.stderr.close()
    wait_until(lambda: is_idle(scripted_stack), limit_s=5, what="the slot is free")


def test_bash_finds_the_program_by_its_second_name(scripted_stack: RunningStack) -> None:
    """`complete` alone is a builtin of bash."""
    path = f"{Path(PROGRAM).parent}:/usr/bin:/bin"
    command = ["bash", "-c", "triton-complete Hi --max-tokens 2 --quiet"]
    done = subprocess.run(
        command, env=environment(scripted_stack, PATH=path), capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout


def test_conversation_at_a_terminal(cpu_stack: RunningStack, tmp_path: Path) -> None:
    """Two turns on a pseudo-terminal, as a user types them; the second request has the first answer."""
    words = ["chat", "--temperature", "0", "--max-tokens", "8", "--save", str(tmp_path / "talk.json")]
    terminal, other_end = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "complete_cli", *words],
        env=environment(cpu_stack, TERM="dumb"),
        stdin=other_end,
        stdout=other_end,
        stderr=other_end,
    )
    os.close(other_end)
    try:
        for line in ("/system Be brief.", "Name a colour.", "Another?", "/exit"):
            read_until(terminal, b"> ")
            os.write(terminal, line.encode() + b"\n")
        assert child.wait(60) == 0
    finally:
        child.kill()
        child.wait(10)
        os.close(terminal)
    messages = json.loads((tmp_path / "talk.json").read_bytes())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    for end in (2, 4):
        with cpu_stack.client() as client:
            body = {"model": MODEL, "messages": messages[:end], "temperature": 0, "max_tokens": 8}
            expected = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
        assert messages[end]["content"] == expected


def read_until(terminal: int, end: bytes) -> None:
    """Reads what the program prints until a line of it begins with `end`."""
    found = b""
    deadline = time.monotonic() + 60
    while not found.rpartition(b"\n")[2].endswith(end):
        left_s = deadline - time.monotonic()
        assert select.select([terminal], [], [], max(0, left_s))[0], found
        found += os.read(terminal, 65536)
