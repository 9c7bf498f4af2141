"""The front end with a real Triton that serves a stand-in for NVIDIA's inflight_batcher_llm ensemble.

The stand-in (tests/fakes/inflight_batcher_llm) has its tensors and behavior. NVIDIA's own models were not run here.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from launcher.local import triton_wheel as triton_server
from launcher.local.processes import ChildProcess
from launcher.ports import free_ports
from launcher.settings import StackSettings
from tests.fakes.inflight_batcher_llm import make_repository
from tests.support.stack import API_KEY
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

ACTIVE = 'nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"}'


class Served:
    """A running front end and its Triton."""

    def __init__(self, port: int, metrics_port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"
        headers = {"Authorization": f"Bearer {API_KEY}"}
        self.client = httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False)

    def post(self, prompt: Any, **body: Any) -> httpx.Response:
        return self.client.post("/v1/completions", json={"model": "nvidia", "prompt": prompt, "max_tokens": 50, **body})

    def complete(self, prompt: str, **body: Any) -> tuple[str, str, int]:
        """Text, finish reason and completion tokens."""
        answer = self.post(prompt, **body)
        assert answer.status_code == 200, answer.text
        (choice,) = answer.json()["choices"]
        return choice["text"], choice["finish_reason"], answer.json()["usage"]["completion_tokens"]

    def stream(self, prompt: str, **body: Any) -> tuple[list[str], str, int]:
        """The pieces of text, finish reason and completion tokens."""
        answer = self.post(prompt, stream=True, stream_options={"include_usage": True}, **body)
        assert answer.status_code == 200, answer.text
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        assert not any("error" in event for event in events), events
        choices = [choice for event in events for choice in event["choices"]]
        (reason,) = {choice["finish_reason"] for choice in choices} - {None}
        return [choice["text"] for choice in choices], reason, events[-1]["usage"]["completion_tokens"]

    def active(self) -> float:
        lines = httpx.get(self._metrics_url, trust_env=False).text.splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(ACTIVE)), 0.0)

    def wait_until_free(self) -> None:
        wait_until(lambda: self.active() == 0, limit_s=5, what="the engine has nothing to do")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("inflight-batcher")
    port, http_port, grpc_port, metrics_port = free_ports(4)
    file = folder / "deployment.toml"
    table = f'kind = "inflight_batcher_llm"\ntriton = "127.0.0.1:{grpc_port}"\n'
    file.write_text(
        f'[[models]]\nname = "nvidia"\nmax_model_len = 300\n{table}\n'
        f'[[models]]\nname = "nvidia:adapter"\nparent = "nvidia"\nlora_task_id = 7\n{table}'
    )
    settings = StackSettings(triton_http_port=http_port, triton_grpc_port=grpc_port, triton_metrics_port=metrics_port)
    repository = make_repository(folder / "repository")
    triton = ChildProcess(
        "Triton",
        triton_server.tritonserver_command(settings, triton_server.prepare_backends(folder), repository),
        triton_server.environment(settings, None),
        folder / "triton.log",
        stop_timeout_s=20,
    )
    frontend = ChildProcess(
        "The front end",
        [sys.executable, "-m", "frontend"],
        {**os.environ, "PORT": str(port), "API_KEY": API_KEY, "DEPLOYMENT": str(file)},
        folder / "frontend.log",
        stop_timeout_s=20,
    )
    with ExitStack() as running:
        for child in (triton, frontend):
            running.callback(child.stop)
            child.start()
        found = Served(port, metrics_port)
        running.callback(found.client.close)
        wait_until(lambda: is_ready(found, folder, triton, frontend), limit_s=90, what="both models are ready")
        yield found


def is_ready(served: Served, folder: Path, *children: ChildProcess) -> bool:
    assert all(child.is_alive for child in children), "".join(log.read_text()[-3000:] for log in folder.glob("*.log"))
    try:
        models = ("nvidia", "nvidia:adapter")
        return all(served.client.get("/health/ready", params={"model": name}).status_code == 200 for name in models)
    except httpx.TransportError:
        return False


def test_the_stream_adds_up_to_the_whole_text(served: Served) -> None:
    text, reason, tokens = served.complete("say: Paris is a city.")
    assert (text, reason, tokens) == (" Paris is a city.", "stop", len(text) + 1)  # and the end token
    pieces, reason, streamed_tokens = served.stream("say: Paris is a city.")
    assert ("".join(pieces), reason, streamed_tokens) == (text, "stop", tokens)
    assert len(pieces) > 10  # as it is made, not at the end


def test_usage_counts_prompt_tokens_once(served: Served) -> None:
    assert served.post("say:abc").json()["usage"] == {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}


@pytest.mark.parametrize("streams", [False, True])
def test_finish_reason_length_has_text_in_its_last_chunk(served: Served, streams: bool) -> None:
    if streams:
        pieces, reason, tokens = served.stream("loop:abc", max_tokens=7)
        assert pieces[-1]
    else:
        text, reason, tokens = served.complete("loop:abc", max_tokens=7)
        pieces = [text]
    assert ("".join(pieces), reason, tokens) == ("abcabca", "length", 7)


def test_an_end_just_before_max_tokens_is_stop(served: Served) -> None:
    assert served.complete("say:abc", max_tokens=4) == ("abc", "stop", 4)
    assert served.complete("say:abc", max_tokens=3) == ("abc", "length", 3)


def test_a_full_context_has_finish_reason_length(served: Served) -> None:
    _, reason, tokens = served.complete("loop:abc", max_tokens=300)
    assert (reason, tokens) == ("length", 300 - len("loop:abc"))


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(("includes", "expected"), [(False, "one t"), (True, "one two")])
def test_a_stop_string_ends_the_text(served: Served, streams: bool, includes: bool, expected: str) -> None:
    body = {"stop": ["never", "wo"], "include_stop_str_in_output": includes, "max_tokens": 200}
    if streams:
        pieces, reason, tokens = served.stream("loop:one two three ", **body)
        text = "".join(pieces)
    else:
        text, reason, tokens = served.complete("loop:one two three ", **body)
    assert (text, reason, tokens) == (expected, "stop", len("one two"))
    served.wait_until_free()


def test_characters_of_several_bytes_are_whole_without_a_stream(served: Served) -> None:
    assert served.complete("say:né 🎉") == ("né 🎉", "stop", 9)
    text, reason, _ = served.complete("say:né 🎉", max_tokens=6)  # two bytes of the four
    assert (text, reason) == ("né ", "length")


def test_sampling_values_reach_the_engine_and_omitted_ones_get_safe_defaults(served: Served) -> None:
    def seen(**body: Any) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(served.complete("seen:", max_tokens=250, **body)[0])
        return values

    plain = {"runtime_top_k": 0, "runtime_top_p": 1.0, "temperature": 1.0, "lora_task_id": None, "end_id": 256}
    assert seen() == {**plain, "min_tokens": None}
    assert seen(temperature=0)["runtime_top_k"] == seen(top_p=0)["runtime_top_k"] == 1
    assert seen(top_k=-1, top_p=0.5, temperature=0.5) == {**seen(), "runtime_top_p": 0.5, "temperature": 0.5}


def test_structured_output_is_passed_on(served: Served) -> None:
    """The stand-in accepts the guide inputs and ignores them: its output is the script."""
    assert served.complete("say:{}", response_format={"type": "json_object"}) == ("{}", "stop", 3)


def test_a_lora_adapters_name_sends_its_task_id(served: Served) -> None:
    answer = served.post("seen:", model="nvidia:adapter", max_tokens=250)
    assert json.loads(answer.json()["choices"][0]["text"])["lora_task_id"] == 7
    card = served.client.get("/v1/models/nvidia:adapter").json()
    assert (card["parent"], card["max_model_len"], card["capabilities"]["prompt_token_ids"]) == ("nvidia", None, False)


@pytest.mark.parametrize(
    ("prompt", "body", "param"),
    [
        ([1, 2, 3], {}, "prompt"),
        ("say:a", {"min_p": 0.1}, "min_p"),
        ("say:a", {"skip_special_tokens": False}, "skip_special_tokens"),
        ("say:a", {"return_tokens_as_token_ids": True}, "return_tokens_as_token_ids"),
        ("say:a", {"return_token_ids": True}, "return_token_ids"),
        ("say:a", {"best_of": 2}, "best_of"),
    ],
)
def test_unsupported_fields_are_rejected_by_name(served: Served, prompt: Any, body: Any, param: str) -> None:
    answer = served.post(prompt, **body)
    assert answer.status_code == 400
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == ("unsupported_parameter", param)


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        ("Prompt length (9000) exceeds maximum input length (8192).", 400, "context_length_exceeded"),
        ("Maximum queue size of 8 has been reached, please try again later", 429, "queue_full"),
        ("Traceback /secret/path", 500, "internal_error"),
    ],
)
def test_errors_of_the_ensemble_have_our_codes(served: Served, words: str, status: int, code: str) -> None:
    answer = served.post(f"fail:{words}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert "secret" not in answer.text


def test_a_disconnect_frees_the_engine(served: Served) -> None:
    """An ensemble does not pass a cancel on; the stop message does. All 280 tokens would take 28 s."""
    body = {"model": "nvidia:adapter", "prompt": "slow:abc", "max_tokens": 280, "stream": True}
    with served.client.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()  # kept: its end would close the connection
        next(lines)
        wait_until(lambda: served.active() == 1, limit_s=5, what="the engine works")
    served.wait_until_free()


def test_the_official_openai_client(served: Served) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key=API_KEY, max_retries=0)
    stream = client.completions.create(model="nvidia", prompt="say: hello", max_tokens=20, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == " hello"
