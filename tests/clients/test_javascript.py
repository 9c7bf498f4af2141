"""openai-node and the AI SDK on Node.js return the text, the token counts and the errors of the server."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from tests.support.clients import Clients
from tests.support.stack import MODEL, RunningStack
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.triton, pytest.mark.clients]


def test_openai_node(clients: Clients, greedy_text: str) -> None:
    found = clients.node("openai_node.mjs")
    assert found["text"] == found["streamed"] == greedy_text
    assert found["interleaved"] == [greedy_text] * 4
    assert "".join(found["logprob_tokens"]) == greedy_text
    assert found["usage"] == [5, 8, 13]
    assert (found["finish_reason"], found["stream_end"], found["stream_usage"]) == ("length", "length", 13)
    assert found["indices"] == [0, 1, 2, 3]
    assert found["echoed"] == "a\u2028b\u2029c\u0085d"
    assert (found["models"], found["model"]) == ([MODEL], MODEL)
    assert found["request_id"]
    assert found["unknown_model"] == refusal("NotFoundError", 404, "model_not_found", "model", "not_found_error")
    assert found["bad_field"] == refusal(
        "BadRequestError", 400, "value_out_of_range", "temperature", "invalid_request_error"
    )
    assert found["bad_key"] == refusal("AuthenticationError", 401, "invalid_api_key", None, "authentication_error")


def refusal(name: str, status: int | None, code: str, param: str | None, kind: str) -> dict[str, object]:
    """An exception of openai-node as the scripts report it."""
    return {"class": name, "status": status, "code": code, "param": param, "type": kind, "has_request_id": True}


def test_openai_node_waits_aborts_retries_and_fails_as_the_server_says(
    slow_stack: RunningStack, start_clients: Callable[[RunningStack], Clients]
) -> None:
    body = {"model": MODEL, "prompt": "a", "max_tokens": 3, "stream": True, "ignore_eos": True}
    raw = httpx.post(slow_stack.completions_url, json=body, headers=slow_stack.headers, trust_env=False)
    assert ": keep-alive\n\n" in raw.text
    found = start_clients(slow_stack).node("openai_node_faults.mjs")
    assert found["commented"] == raw.text.count('"text"')
    assert (found["after_break"], found["until_abort"]) == (200, 1)
    assert found["aborted_whole"] == "APIUserAbortError"
    assert found["retries"] >= 1
    assert found["retried"] == 1
    assert found["late"] == refusal("APIError", None, "deadline_exceeded", None, "timeout_error")
    wait_until(lambda: slow_stack.active_requests == 0, what="the slot is free")


def test_ai_sdk(clients: Clients) -> None:
    """The provider puts `user:` and `assistant:` around the prompt, so its text is not that of the other clients."""
    found = clients.node("ai_sdk.mjs")
    assert found["text"].strip()
    assert found["text"] == found["streamed"]
    assert found["finish_reason"] == found["stream_end"] == "length"
    assert found["usage"] == found["stream_usage"]
    assert found["usage"] > 8
    assert found["unknown_model"]["class"] == "AI_APICallError"
    assert found["unknown_model"]["status"] == 404
    assert found["unknown_model"]["message"].startswith("This model does not exist.")
