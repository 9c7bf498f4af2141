"""Load generators on completions and on chat: every request succeeds, and their token counts are the server's usage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import BIN, SCRIPTS, Clients
from tests.support.stack import MODEL

pytestmark = [pytest.mark.triton, pytest.mark.clients]

PROMPTS = ["Once upon a time there was", "The sea is", "A dog went", "My name is", "One two three", "Water is"]
OUTPUT_TOKENS = 8
OPERATIONS = pytest.mark.parametrize("operation", ["completions", "chat"])
PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


def prompts_file(clients: Clients, **fields: str | int) -> Path:
    """One JSON object a line; the field named `prompt` or `text` by the caller holds the prompt."""
    path = clients.home / "prompts.jsonl"
    name = str(fields.pop("prompt_field"))
    path.write_text("".join(json.dumps({name: prompt, **fields}) + "\n" for prompt in PROMPTS), encoding="utf-8")
    return path


@OPERATIONS
def test_guidellm(clients: Clients, operation: str) -> None:
    """Its probe of the server, two concurrent streams, and usage on every chunk (`continuous_usage_stats`)."""
    data = prompts_file(clients, prompt_field="prompt", output_tokens_count=OUTPUT_TOKENS)
    stack, report = clients.stack, clients.home / "guidellm.json"
    backend = f"kind=openai_http,target={stack.base_url},model={MODEL},request_format={PATHS[operation]}"
    command: list[str | Path] = [BIN / "guidellm", "run", "--backend", f"{backend},api_key={stack.api_key}"]
    command += ["--profile", "kind=concurrent,streams=2", "--constraint", f"kind=max_requests,count={len(PROMPTS)}"]
    command += ["--tokenizer", f"kind=huggingface_auto,model={clients.tokenizer_dir}"]
    command += ["--data", f"kind=json_file,path={data}", "--output", f"kind=json,path={report}"]
    command += ["--disable-console-interactive"]
    clients.run(command, {"PYTHONPATH": str(SCRIPTS / "without_torch"), "USE_TORCH": "0"})
    (benchmark,) = json.loads(report.read_text(encoding="utf-8"))["benchmarks"]
    assert benchmark["requests"]["errored"] == []
    assert len(benchmark["requests"]["successful"]) == len(PROMPTS)
    for request in benchmark["requests"]["successful"]:
        sent = json.loads(request["request_args"])["body"]
        assert sent["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
        prompt = sent["prompt"] if operation == "completions" else sent["messages"]
        prompt_tokens = usage_of(clients, prompt)
        assert (request["prompt_tokens"], request["output_tokens"]) == (prompt_tokens, OUTPUT_TOKENS)
        assert request["output"]
        assert request["time_to_first_token_ms"] > 0


@OPERATIONS
def test_aiperf(clients: Clients, operation: str) -> None:
    """Streams with usage, token counts that match the server's, a read of /metrics.

    Of a chat, aiperf 0.13 counts the messages alone: transformers 5 returns no list of ids for a rendered template, and
    aiperf takes that for a tokenizer without one (records/inference_result_parser.py).
    """
    data = prompts_file(clients, prompt_field="text")
    stack, out = clients.stack, clients.home / "aiperf"
    command: list[str | Path] = [BIN / "aiperf", "profile", "--model", MODEL, "--url", stack.base_url]
    command += ["--endpoint-type", operation, "--streaming", "--api-key", stack.api_key]
    command += ["--tokenizer", clients.tokenizer_dir, "--input-file", data, "--custom-dataset-type", "single_turn"]
    command += ["--request-count", str(len(PROMPTS)), "--concurrency", "2", "--ui", "none", "--no-gpu-telemetry"]
    command += ["--extra-inputs", f"max_tokens:{OUTPUT_TOKENS}", "--extra-inputs", "ignore_eos:true"]
    # Greedy, because a sampled text may tokenize to another number of tokens than it was made of.
    command += ["--extra-inputs", "temperature:0"]
    command += ["--output-artifact-dir", out]
    # With a hub marked as offline it looks for tokenizers in the hub's cache alone; it has no network anyway.
    clients.run(command, {"HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": ""})
    found = json.loads((out / "profile_export_aiperf.json").read_text(encoding="utf-8"))
    assert found["request_count"]["avg"] == len(PROMPTS)
    assert found["request_error_rate"]["avg"] == 0
    if operation == "completions":
        assert found["usage_discrepancy_count"]["avg"] == 0
    assert found["total_usage_completion_tokens"]["avg"] == OUTPUT_TOKENS * len(PROMPTS)
    sent = PROMPTS if operation == "completions" else [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    assert found["total_usage_prompt_tokens"]["avg"] == sum(usage_of(clients, prompt) for prompt in sent)
    assert found["time_to_first_token"]["avg"] > 0
    server = json.loads((out / "server_metrics_export.json").read_text(encoding="utf-8"))
    assert "completions_generation_tokens" in server["metrics"]


def test_vllm_bench_serve_shape(clients: Clients) -> None:
    """Its request and its way to read the stream, written after its source; the program itself is not run."""
    answers = clients.script("vllm_bench_shape.py")["answers"]
    for number, answer in enumerate(answers):
        assert answer["status"] == 200
        assert answer["request_id"] == f"bench-{number}"
        assert answer["has_first_token"]
        assert answer["text"]
        assert answer["left_over"] == ""
        assert answer["usage"]["completion_tokens"] == 8


def usage_of(clients: Clients, prompt: str | list[dict[str, Any]]) -> int:
    """The number of tokens of a prompt or of a conversation, as the server counts."""
    if isinstance(prompt, str):
        answer = clients.stack.complete(prompt=prompt, max_tokens=1)
    else:
        answer = clients.stack.chat(messages=prompt, max_tokens=1)
    tokens: int = answer.json()["usage"]["prompt_tokens"]
    return tokens
