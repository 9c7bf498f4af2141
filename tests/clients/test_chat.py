"""Chat clients get the server's texts and token counts, calls whose arguments validate, and structured answers.

The default model is too small to call functions by itself, so every call here is enforced: by `tool_choice`, `strict`
or a schema. The scripts parse calls and answers with the models of scripts/weather.py, and end with an error unless
those are valid. Equal means: whole, streamed, and by whatever form the client asks, it is the same answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import OPENAI_PYTHONS, Clients
from tests.support.stack import MODEL

pytestmark = [pytest.mark.triton, pytest.mark.clients]

PARIS = {"city": "Paris", "unit": "celsius"}  # the greedy arguments of every client: the question names the city


def assert_forecast(value: dict[str, Any]) -> None:
    assert value.keys() == {"place", "degrees", "warning"}
    assert value["place"] == PARIS
    assert -40 <= value["degrees"] <= 50
    assert value["warning"] in ("storm", "ice", None)


@pytest.mark.parametrize("python", OPENAI_PYTHONS)
def test_openai_python(clients: Clients, greedy_answer: tuple[str, int], python: Path) -> None:
    text, tokens = greedy_answer
    found = clients.script("openai_chat.py", python=python)
    assert found["text"] == found["streamed"] == found["of_parts"] == found["strict_text"] == text
    assert found["many"] == [text, text]
    assert found["async"] == {"text": text, "streamed": text}
    assert (found["refusal"], found["usage"][2], found["stream_usage"]) == (None, tokens, tokens)
    assert found["usage"][0] + found["usage"][1] == tokens
    assert found["logprob_text"].removesuffix("<|im_end|>") == text
    assert found["top_sizes"] == [2] * found["usage"][1]
    assert found["strict_streamed"] == text  # chat's type of finish_reason has null, unlike that of completions
    assert found["bad_role"] == ["BadRequestError", 400, "value_out_of_range", "messages[0].role"]
    assert found["bad_tool"] == ["BadRequestError", 400, "value_out_of_range", "tools[0].function.name"]
    assert found["unknown_model"] == ["NotFoundError", 404, "model_not_found", "model"]

    check_parsed(found["structured"], found["tools"])


def check_parsed(structured: dict[str, Any], tools: dict[str, Any]) -> None:
    assert_forecast(structured["parsed"])
    assert structured["parsed"] == structured["streamed"]
    assert structured["classes"] == ["Forecast", "Forecast"]
    assert structured["adds_up"]
    assert structured["pieces"] > 1
    assert (tools["name"], tools["content"], tools["finish_reasons"]) == ("GetWeather", None, ["tool_calls"] * 2)
    assert tools["parsed"]["place"] == PARIS
    assert tools["parsed"] == tools["streamed"] == tools["named"]
    assert tools["done"] == [["GetWeather", tools["parsed"]]]
    assert tools["adds_up"]
    assert tools["pieces"] > 1
    assert tools["ids_differ"]
    assert tools["answer"] == tools["answer_streamed"] != ""


def test_langchain_openai(clients: Clients, greedy_answer: tuple[str, int]) -> None:
    text, tokens = greedy_answer
    found = clients.script("langchain_chat.py")
    assert found["text"] == found["streamed"] == found["async"] == text
    assert found["batch"] == [text, text]
    assert found["usage"] == [tokens, tokens]
    tools = found["tools"]
    assert (tools["name"], tools["finish_reason"]) == ("GetWeather", "tool_calls")
    assert tools["parsed"]["place"] == PARIS
    assert tools["streamed"]
    assert tools["after_result"] == tools["after_streamed_call"] != ""
    for by_method in found["structured"].values():
        assert_forecast(by_method["parsed"])
        assert by_method["parsed"] == by_method["streamed"]


def test_litellm(clients: Clients, greedy_answer: tuple[str, int]) -> None:
    text, tokens = greedy_answer
    found = clients.script("litellm_chat.py")
    for route in found["routes"].values():
        assert route["text"] == route["streamed"] == route["async_streamed"] == text
        assert route["usage"] == [tokens, tokens]
        assert (route["name"], route["finish_reason"]) == ("GetWeather", "tool_calls")
        assert route["called"]["place"] == PARIS
        assert route["after_result"]
    assert found["streamed_call"] is True
    assert_forecast(found["parsed"])
    assert found["unknown_model"] == "NotFoundError"
    assert found["bad_role"] == "BadRequestError"
    assert found["bad_key"] == "AuthenticationError"


def test_llama_index_openai_like(clients: Clients, greedy_answer: tuple[str, int]) -> None:
    text, _ = greedy_answer
    found = clients.script("llama_index_chat.py")
    assert found["text"] == found["streamed"] == found["whole_at_end"] == found["async"] == text
    tools = found["tools"]
    assert tools["name"] == "GetWeather"
    assert tools["parsed"]["place"] == PARIS
    assert tools["streamed"]
    assert tools["after_result"]
    assert_forecast(found["parsed"])


def test_pydantic_ai(clients: Clients, greedy_answer: tuple[str, int]) -> None:
    """Its agent calls a function, sends the result back and gets a model, in two requests without a retry."""
    found = clients.script("pydantic_ai_agent.py")
    assert found["text"] == greedy_answer[0]
    for output in found["outputs"].values():
        assert output["requests"] == 2
        assert_forecast(output["parsed"])
        assert PARIS in output["places"]
    assert found["streamed"] == found["outputs"]["tool"]["parsed"]


def test_instructor(clients: Clients) -> None:
    found = clients.script("instructor_client.py")
    modes = found["modes"]
    assert modes.keys() == {"tool_call", "tools_strict", "json_schema_mode"}
    for mode in modes.values():
        assert_forecast(mode)
    assert_forecast(found["partial"])


def test_open_webui_shape(clients: Clients, greedy_answer: tuple[str, int]) -> None:
    """Its backend's requests and its way to read a stream, written after its source; the program itself is not run."""
    text, tokens = greedy_answer
    found = clients.script("open_webui_shape.py")
    assert found["models"] == [MODEL]
    chat = found["chat"]
    assert (chat["status"], chat["text"], chat["errors"]) == (200, text, [])
    assert chat["usage"]["total_tokens"] == tokens
    assert found["of_parts"] == text
    assert found["continued"] == [200, []]
    tools = found["tools"]
    assert tools["finish_reason"] == "tool_calls"
    assert ["get_weather", {"city": "Paris"}] in tools["calls"]
    assert tools["after"] == tools["after_streamed"] != ""
    assert found["tasks"] == found["expected"]


def test_openai_node(clients: Clients, greedy_answer: tuple[str, int]) -> None:
    text, tokens = greedy_answer
    found = clients.node("openai_node_chat.mjs")
    assert found["text"] == found["streamed"] == text
    assert (found["usage"], found["stream_usage"]) == (tokens, tokens)
    assert (found["finish_reason"], found["content"], found["name"]) == ("tool_calls", None, "get_weather")
    arguments = found["arguments"]
    assert arguments["city"] == "Paris"
    assert 1 <= arguments["days"] <= 7
    assert found["streamed_call"]
    assert found["adds_up"]
    assert found["pieces"] > 1
    assert found["called_with"] == [arguments]
    assert found["after_result"]
    assert found["parsed"]["city"] == "Paris"
    assert (found["bad_role"]["class"], found["bad_role"]["param"]) == ("BadRequestError", "messages[0].role")


def test_ai_sdk(clients: Clients, greedy_answer: tuple[str, int]) -> None:
    text, tokens = greedy_answer
    found = clients.node("ai_sdk_chat.mjs")
    assert found["text"] == found["streamed"] == text
    assert (found["usage"], found["stream_usage"]) == (tokens, tokens)
    assert (found["steps"], found["finish_reason"]) == (2, "tool-calls")
    assert found["input"]["city"] == "Paris"
    assert found["input"] == found["streamed_input"]
    assert found["given"] == [found["input"]] * 2
    assert found["output"]["city"] == "Paris"
