"""Client libraries and frameworks return the text, the token counts and the errors of the server."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.clients import BIN, OPENAI_PYTHONS, REPOSITORY, Clients
from tests.support.stack import MODEL, RunningStack, running_stack

pytestmark = [pytest.mark.triton, pytest.mark.clients]
JDK_CLIENT = REPOSITORY / "tests" / "integration" / "http_clients" / "JdkHttpClient.java"


@pytest.mark.parametrize("python", OPENAI_PYTHONS)
def test_openai_python(clients: Clients, greedy_text: str, python: Path) -> None:
    found = clients.script("openai_python.py", python=python)
    assert found["text"] == found["streamed"] == found["strict_text"] == greedy_text
    assert found["async"] == {"texts": [greedy_text] * 3, "streamed": greedy_text, "models": [MODEL]}
    assert found["usage"] == [5, 8, 13]
    assert (found["finish_reason"], found["stream_end"], found["stream_usage"]) == ("length", "length", 13)
    assert "".join(found["log_prob_tokens"]) == greedy_text
    assert found["top_sizes"] == [2] * 8
    assert found["indices"] == [0, 1, 2, 3]
    assert found["sampled"][0] == found["sampled"][1]
    assert found["model"] == MODEL
    refusals = {
        "unknown_model": ("NotFoundError", 404, "model_not_found", "model"),
        "bad_field": ("BadRequestError", 400, "value_out_of_range", "temperature"),
        "bad_key": ("AuthenticationError", 401, "invalid_api_key", None),
    }
    for name, expected in refusals.items():
        answer = found[name]
        assert answer.pop("has_request_id")
        assert tuple(answer.values()) == expected
    # The strict client rejects every server's stream of several chunks: its finish_reason has no null.
    assert found["strict_stream"].startswith("APIResponseValidationError")
    assert "finish_reason" in found["strict_stream"]


def test_openai_python_retries_after_the_given_time(
    engine_dir: Path, tmp_path: Path, start_clients: Callable[[RunningStack], Clients]
) -> None:
    """The only slot is in use for 1.5 s."""
    settings = {"EXECUTOR": "scripted", "SCRIPTED_STEPS_PER_S": "200", "MAX_IN_FLIGHT": "1"}
    with running_stack(tmp_path, engine_dir, **settings) as stack:
        clients = start_clients(stack)
        for python in (Path(sys.executable), BIN / "python"):
            found = clients.script("openai_retry.py", python=python)
            *refusals, last = found["answers"]
            assert [status for status, *_ in refusals] == [429] * len(refusals)
            assert refusals, "the slot was free: nothing was tried again"
            assert last[0] == 200
            assert found["tokens"] == 3
            for refusal, following in zip(found["answers"], found["answers"][1:], strict=False):
                (_, told_s, told_ms, _, answered), (_, _, _, asked, _) = refusal, following
                assert int(told_s) == math.ceil(int(told_ms) / 1000) > 0
                waited_s = asked - answered  # the client reads the finer header where there is one
                assert int(told_ms) / 1000 - 0.05 <= waited_s < int(told_ms) / 1000 + 5


def test_keep_alive_comments_are_no_pieces(
    slow_stack: RunningStack, start_clients: Callable[[RunningStack], Clients]
) -> None:
    found = start_clients(slow_stack).script("keep_alive.py")
    text = slow_stack.complete(prompt="a", max_tokens=4).json()["choices"][0]["text"]
    assert found == dict.fromkeys(("litellm", "openai", "langchain", "llama_index"), text)


def test_langchain_openai(clients: Clients, greedy_text: str) -> None:
    found = clients.script("langchain.py")
    assert found["text"] == found["streamed"] == found["async"] == found["batch"][0] == greedy_text
    assert len(found["batch"]) == 2
    assert found["usage"] == {"prompt_tokens": 9, "completion_tokens": 16, "total_tokens": 25}
    assert found["stopped"] == greedy_text.split("\n")[0]


def test_litellm(clients: Clients, greedy_text: str) -> None:
    found = clients.script("litellm_client.py")
    assert found["text"] == found["streamed"] == found["async_streamed"] == greedy_text
    assert (found["finish_reason"], found["usage"]) == ("length", 13)
    assert found["unknown_model"] == "NotFoundError"
    assert found["bad_field"] == "BadRequestError"
    assert found["bad_key"] == "AuthenticationError"


def test_llama_index_openai_like(clients: Clients, greedy_text: str) -> None:
    found = clients.script("llama_index_like.py")
    assert found["text"] == found["streamed"] == found["whole_at_end"] == found["async"] == greedy_text
    assert found["stopped"] == greedy_text.split("\n")[0]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(clients: Clients, greedy_text: str) -> None:
    """The completions path, whole and streamed, and Triton's generate and generate_stream."""
    stack = clients.stack
    body = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
    curl = ["curl", "-sS", "-N", "--fail", "--max-time", "60"]
    call = [
        *curl,
        stack.completions_url,
        "-H",
        f"Authorization: Bearer {stack.api_key}",
        "-H",
        "Content-Type: application/json",
    ]
    whole = json.loads(clients.run([*call, "-d", json.dumps(body)]))
    assert whole["choices"][0]["text"] == greedy_text
    *events, done, rest = clients.run([*call, "-d", json.dumps({**body, "stream": True})]).split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert "".join(json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events) == greedy_text

    inputs = json.dumps({"text_input": body["prompt"], "max_tokens": 8, "temperature": 0})
    generate = f"{stack.triton_http_url}/v2/models/ensemble/generate"
    assert json.loads(clients.run([*curl, generate, "-d", inputs]))["text_output"] == greedy_text
    streamed = json.dumps({**json.loads(inputs), "stream": True})
    events = clients.run([*curl, f"{generate}_stream", "-d", streamed]).split("\n\n")
    assert "".join(json.loads(event.removeprefix("data: "))["text_output"] for event in events if event) == greedy_text


@pytest.mark.skipif(shutil.which("javac") is None, reason="no JDK; Debian: apt-get install default-jdk-headless")
@pytest.mark.parametrize("stream", [False, True])
def test_jdk_http_client(clients: Clients, greedy_text: str, stream: bool) -> None:
    """It offers an upgrade to HTTP/2 with its first request, and sends the second on the same connection."""
    stack = clients.stack
    body = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0, "stream": stream}
    printed = clients.run(["java", JDK_CLIENT, stack.completions_url, stack.api_key, json.dumps(body)])
    _, first, second = printed.split("200 HTTP_1_1\n")
    for answer in (first, second):
        *events, end = (line.removeprefix("data: ") for line in answer.split("\n") if line)
        documents = events if stream else [end]
        assert "".join(json.loads(document)["choices"][0]["text"] for document in documents) == greedy_text
        assert (end == "[DONE]") is stream


def test_tritonclient(clients: Clients, greedy_text: str) -> None:
    """gRPC streams with callbacks and with asyncio; over HTTP all but inference, since the ensemble is decoupled."""
    found = clients.script("triton_clients.py")
    assert found["callbacks"] == {"text": greedy_text, "is_ready": True}
    assert found["asyncio"] == greedy_text
    http = found["http"]
    assert (http["is_live"], http["is_ready"], http["is_decoupled"]) == (True, True, True)
    assert {"text_input", "max_tokens", "stop_words"} <= set(http["inputs"])
    assert http["succeeded"] >= 2
