"""The ensemble as NVIDIA's clients use it: names, shapes and padding of inflight_batcher_llm, over HTTP and gRPC.

The requests are those that genai-perf's and perf_analyzer's tensorrtllm mode, NVIDIA's OpenAI front end and its
inflight_batcher_llm_client make (read from their sources); the programs themselves are not run here.
"""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton

from tests.support.stack import RunningStack

pytestmark = pytest.mark.triton

PROMPT = "The capital of France is"


def generate(stack: RunningStack, **inputs: Any) -> dict[str, Any]:
    url = f"{stack.triton_http_url}/v2/models/ensemble/generate"
    answer = httpx.post(url, json=inputs, trust_env=False, timeout=60)
    assert answer.status_code == 200, answer.text
    outputs: dict[str, Any] = answer.json()
    return outputs


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_readmes_generate_example_answers(cpu_stack: RunningStack) -> None:
    url = f"{cpu_stack.triton_http_url}/v2/models/ensemble/generate"
    command = ["curl", "-sS", "--max-time", "60", url, "-d", '{"text_input": "hello", "max_tokens": 5}']
    found = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout)
    assert (found["num_input_tokens"], found["num_output_tokens"], found["finish_reason"]) == (1, 5, "length")


def test_generate_takes_scalars_and_lists_and_names_of_both_apis(cpu_stack: RunningStack) -> None:
    """genai-perf wraps each value into a list."""
    scalars = generate(cpu_stack, text_input=PROMPT, max_tokens=3, temperature=0, bad_words="", stop_words="")
    lists = generate(cpu_stack, text_input=[PROMPT], max_tokens=[3], temperature=[0.0], exclude_input_in_output=[True])
    assert scalars["text_output"] == lists["text_output"] == " Paris.\n"
    full = generate(
        cpu_stack, text_input=PROMPT, max_tokens=3, temperature=0, return_log_probs=True, exclude_input_in_output=False
    )
    assert full["text_output"] == PROMPT + " Paris.\n"
    assert sum(full["output_log_probs"]) == pytest.approx(full["cum_log_probs"], abs=1e-5)
    listed = json.loads(
        generate(cpu_stack, text_input=PROMPT, max_tokens=3, temperature=0, logprobs=1)["logprobs_json"]
    )
    assert listed["token_logprobs"] == pytest.approx(full["output_log_probs"], abs=1e-3)


def test_generate_stream_sends_events(cpu_stack: RunningStack) -> None:
    url = f"{cpu_stack.triton_http_url}/v2/models/ensemble/generate_stream"
    inputs = {"text_input": PROMPT, "max_tokens": 12, "temperature": 0, "stream": True, "stop_words": ["x"]}
    lines = httpx.post(url, json=inputs, trust_env=False, timeout=60).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    whole = generate(cpu_stack, **{**inputs, "stream": False})
    assert "".join(event["text_output"] for event in events) == whole["text_output"]
    assert [event.get("finish_reason") for event in events] == [None] * (len(events) - 1) + ["length"]


def test_biased_and_bad_words_work_by_nvidias_names(cpu_stack: RunningStack) -> None:
    body = {"text_input": PROMPT, "max_tokens": 3, "temperature": 0}
    assert "Paris" not in generate(cpu_stack, **body, bad_words=["Paris"])["text_output"]
    forced = generate(cpu_stack, **body, embedding_bias_words=[" the"], embedding_bias_weights=[100.0])
    assert forced["text_output"] == " the the the"


def test_an_unsupported_input_is_rejected_by_name(cpu_stack: RunningStack) -> None:
    url = f"{cpu_stack.triton_http_url}/v2/models/ensemble/generate"
    answer = httpx.post(url, json={"text_input": PROMPT, "beam_width": 2}, trust_env=False, timeout=60)
    assert answer.status_code == 400
    assert "beam_width" in answer.json()["error"]


def test_a_request_of_nvidias_openai_front_end_is_completed(cpu_stack: RunningStack) -> None:
    """Its tensors for the TensorRT-LLM backend: all [1, 1], word lists [1, n]."""
    inputs: dict[str, Any] = {
        "text_input": np.array([[PROMPT.encode()]], dtype=object),
        "stream": np.array([[True]]),
        "max_tokens": np.array([[6]], np.int32),
        "stop_words": np.array([[b"zzz", b"\n\n\n"]], dtype=object),
        "top_p": np.array([[1.0]], np.float32),
        "frequency_penalty": np.array([[0.0]], np.float32),
        "presence_penalty": np.array([[0.0]], np.float32),
        "seed": np.array([[7]], np.uint64),
        "temperature": np.array([[0.0]], np.float32),
        "exclude_input_in_output": np.array([[True]]),
        "return_num_input_tokens": np.array([[True]]),
        "return_num_output_tokens": np.array([[True]]),
    }
    tensors = []
    for name, values in inputs.items():
        kind = {"O": "BYTES", "b": "BOOL"}.get(values.dtype.kind, {"i": "INT32", "u": "UINT64"}.get(values.dtype.kind))
        tensors.append(triton.InferInput(name, list(values.shape), kind or "FP32"))
        tensors[-1].set_data_from_numpy(values)
    arrived: queue.Queue[Any] = queue.Queue()
    with triton.InferenceServerClient(cpu_stack.triton_grpc_url) as client:
        client.start_stream(callback=lambda result, error: arrived.put(error or result))
        client.async_stream_infer("ensemble", tensors, enable_empty_final_response=True)
        text, counts = b"", []
        while True:
            result = arrived.get(timeout=60)
            response = result.get_response()
            if response.outputs:
                text += result.as_numpy("text_output").item()
                counts.append(int(result.as_numpy("num_output_tokens").item()))
            if response.parameters["triton_final_response"].bool_param:
                break
        client.stop_stream()
    assert text.decode() == " Paris.\n\nThe answer"[: len(text)]
    assert counts[-1] == 6
