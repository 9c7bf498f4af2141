"""The engine: scripted by the prompt, one thread for each request."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from itertools import cycle
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

MAX_SEQ_LEN = 300  # a completion beyond it is cut off without a notice
SLOW = 50  # times the step of other requests

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def _array(request: Any, name: str) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def _scalar(request: Any, name: str, default: Any = None) -> Any:
    values = _array(request, name)
    return default if values is None else values.reshape(-1)[0].item()


def _words(request: Any, name: str) -> list[list[int]]:
    values = _array(request, name)
    if values is None:
        return []
    tokens, ends = values[0].tolist()
    ends = [end for end in ends if end != -1]
    return [tokens[start:end] for start, end in zip([0, *ends][: len(ends)], ends, strict=True)]


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._step_s = float(json.loads(args["model_config"])["parameters"]["step_s"]["string_value"])
        self._stopped: dict[str, threading.Event] = {}
        self._active = 0
        family = pb_utils.MetricFamily(
            name="nv_trt_llm_request_metrics", description="TRT LLM request metrics", kind=pb_utils.MetricFamily.GAUGE
        )
        self._family = family
        self._gauge = family.Metric(labels={"request_type": "active", "model": args["model_name"], "version": "1"})

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender, key = request.get_response_sender(), request.request_id()
            if _scalar(request, "stop"):
                if key in self._stopped:
                    self._stopped[key].set()
                sender.send(pb_utils.InferenceResponse(), flags=FINAL)
                continue
            stopped = self._stopped[key] = threading.Event()
            threading.Thread(target=self._serve, args=(_Request(request), sender, key, stopped), daemon=True).start()

    def _serve(self, request: _Request, sender: Any, key: str, stopped: threading.Event) -> None:
        self._active += 1
        self._gauge.set(self._active)
        try:
            self._generate(request, sender, stopped)
        finally:
            self._stopped.pop(key, None)
            self._active -= 1
            self._gauge.set(self._active)

    def _generate(self, request: _Request, sender: Any, stopped: threading.Event) -> None:
        if request.failure is not None:
            error = pb_utils.TritonError(request.failure)
            sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)
            return
        made: list[int] = []
        for token in request.tokens:
            if stopped.wait(self._step_s * request.slowness) or len(made) == request.max_tokens:
                break
            made.append(token)
            if request.streams:
                sender.send(request.response([token]))
            if any(made[-len(word) :] == word for word in request.stop_words):
                break
        ids = [] if request.streams else made if request.excludes_input else [*request.prompt, *made]
        sender.send(request.response(ids), flags=FINAL)


class _Request:
    def __init__(self, request: Any) -> None:
        self.prompt = _array(request, "input_ids")[0].tolist()
        text = bytes(self.prompt).decode()
        command, _, rest = text.partition(":")
        self.failure = rest if command == "fail" else None
        script = rest.encode() if rest else b" Paris."
        self.tokens: Iterable[int] = cycle(script) if command in ("loop", "slow") else list(script)
        if command == "seen":  # the sampling values as they arrived
            names = ("runtime_top_k", "runtime_top_p", "temperature", "lora_task_id", "end_id", "min_tokens")
            self.tokens = list(json.dumps({name: _scalar(request, name) for name in names}).encode())
        self.max_tokens = min(_scalar(request, "request_output_len"), MAX_SEQ_LEN - len(self.prompt))
        self.slowness = SLOW if command == "slow" else 1
        self.streams = bool(_scalar(request, "streaming", False))
        self.excludes_input = bool(_scalar(request, "exclude_input_in_output", False))
        self.stop_words = _words(request, "stop_words_list")
        self._returns_input = _scalar(request, "return_num_input_tokens", False)
        self._returns_output = _scalar(request, "return_num_output_tokens", False)

    def response(self, ids: list[int]) -> Any:
        arrays = {
            "output_ids": np.array([[ids]], dtype=np.int32).reshape(1, 1, -1),
            "sequence_length": np.array([[len(ids)]], dtype=np.int32),
        }
        if self._returns_input:
            arrays["num_input_tokens"] = np.array([[len(self.prompt)]], dtype=np.int32)
        if self._returns_output:
            arrays["num_output_tokens"] = np.array([[len(ids)]], dtype=np.int32)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, values) for name, values in arrays.items()])
