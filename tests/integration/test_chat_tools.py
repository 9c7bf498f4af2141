"""Tools of chat on a running stack, as OpenAI's client uses them."""

from __future__ import annotations

import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest
from openai import BadRequestError
from openai.lib.streaming.chat import ChatCompletionStreamState

from tests.support.guide_schemas import SCHEMAS, an_object
from tests.support.stack import MODEL, RunningStack

pytestmark = pytest.mark.triton

SCHEMA_COUNT = int(os.environ.get("TOOL_SCHEMAS", "40"))
_PARTS = [schema for schema in SCHEMAS if "$ref" not in json.dumps(schema)]  # references lead to the root
_MESSAGES: list[Any] = [{"role": "user", "content": "Call the function."}]


def a_tool(seed: int) -> dict[str, Any]:
    """A function with one or two arguments of random schemas."""
    dice = random.Random(seed)
    parameters = an_object({f"argument_{index}": dice.choice(_PARTS) for index in range(dice.randint(1, 2))})
    return {"type": "function", "function": {"name": f"function_{seed}", "parameters": parameters}}


def calls_of(message: Any) -> list[tuple[str, str, str]]:
    """Ids, names and arguments of the calls."""
    return [(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ()]


@pytest.mark.timeout(600)
def test_arguments_are_valid_over_random_schemas(cpu_stack: RunningStack) -> None:
    """Sampled; for 200 schemas: TOOL_SCHEMAS=200.

    A third each with a required call, a named function, and a strict function with a required call.
    """
    client = cpu_stack.openai(timeout=300)

    def one(seed: int) -> str | None:
        tool = a_tool(seed)
        choice: Any = "required"
        if seed % 3 == 1:
            choice = {"type": "function", "function": {"name": tool["function"]["name"]}}
        tool["function"]["strict"] = seed % 3 == 2
        answer = client.chat.completions.create(
            model=MODEL,
            messages=_MESSAGES,
            tools=[tool],  # type: ignore[list-item]
            tool_choice=choice,
            parallel_tool_calls=False,
            max_tokens=150,
            seed=seed,
        ).choices[0]
        if answer.finish_reason == "length":
            return answer.finish_reason
        assert answer.finish_reason == "tool_calls"
        ((_, name, arguments),) = calls_of(answer.message)
        assert (answer.message.content, name) == (None, tool["function"]["name"])
        parameters = tool["function"]["parameters"]
        jsonschema.validate(json.loads(arguments), parameters, format_checker=jsonschema.FormatChecker())
        return answer.finish_reason

    with ThreadPoolExecutor(32) as pool:
        reasons = list(pool.map(one, range(SCHEMA_COUNT)))
    assert reasons.count("length") <= SCHEMA_COUNT // 20  # a small model may fill a string with noise


def test_a_streamed_call_adds_up_to_the_whole_one(cpu_stack: RunningStack) -> None:
    client = cpu_stack.openai(timeout=120)
    for seed in range(4):
        request: dict[str, Any] = {
            "model": MODEL,
            "messages": _MESSAGES,
            "tools": [a_tool(seed), a_tool(seed + 100)],
            "tool_choice": "required",
            "parallel_tool_calls": False,
            "max_tokens": 200,
            "seed": seed,
        }
        whole = client.chat.completions.create(**request).choices[0]
        state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
        for event in client.chat.completions.create(**request, stream=True):
            state.handle_chunk(event)
        (streamed,) = state.get_final_completion().choices
        assert streamed.finish_reason == whole.finish_reason
        assert [call[1:] for call in calls_of(streamed.message)] == [call[1:] for call in calls_of(whole.message)]


def test_a_conversation_with_a_result_goes_on(cpu_stack: RunningStack) -> None:
    client = cpu_stack.openai(timeout=120)
    tool: Any = {
        "type": "function",
        "function": {"name": "add", "parameters": an_object({"a": {"type": "integer"}, "b": {"type": "integer"}})},
    }
    messages: list[Any] = [{"role": "user", "content": "What is 2 + 3?"}]
    first = client.chat.completions.create(
        model=MODEL, messages=messages, tools=[tool], tool_choice="required", parallel_tool_calls=False, temperature=0
    ).choices[0]
    ((call_id, _, _),) = calls_of(first.message)
    messages += [first.message.model_dump(), {"role": "tool", "tool_call_id": call_id, "content": "5"}]
    second = client.chat.completions.create(
        model=MODEL, messages=messages, tools=[tool], tool_choice="none", temperature=0, max_tokens=30
    ).choices[0]
    assert second.message.content
    assert second.message.tool_calls is None


def test_parameters_that_cannot_be_followed_are_refused_by_the_function_s_name(cpu_stack: RunningStack) -> None:
    tool: Any = {
        "type": "function",
        "function": {"name": "odd", "parameters": {"properties": {"a": {"type": "objec"}}}},
    }
    client = cpu_stack.openai()
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=_MESSAGES, tools=[tool], tool_choice="required")
    assert caught.value.param == "tools"
    assert "odd" in str(caught.value)
    assert "`objec` is not a type" in str(caught.value)
