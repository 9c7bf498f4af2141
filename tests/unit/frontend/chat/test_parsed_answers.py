"""Answers whose text is parsed: a stream adds up to the whole answer, for any parser and any cut of the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from frontend.backends.fake import chunks
from frontend.chat.answer import ChatAnswer
from frontend.chat.parsing.answer_parser import (
    ContentDelta,
    Delta,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallStart,
)
from frontend.chat.schema import ChatCompletionRequest
from frontend.generation.completion_run import Choice
from llm_pipeline.protocol.messages import CompletionParameters, FinishReason, TextChunk

LOGPROBS = orjson.dumps({"tokens": ["x"], "token_logprobs": [-1.0], "top_logprobs": [{"x": -1.0}], "text_offset": [0]})


class LetterParser:
    """A parser for tests: r is reasoning, each C begins a call, a is an argument, E ends a call, others are content.

    It holds back one letter.
    """

    def __init__(self) -> None:
        self.has_complete_call = False
        self._held = ""
        self._calls = -1

    def feed(self, text: str) -> Sequence[Delta]:
        text, self._held = (self._held + text)[:-1], (self._held + text)[-1:]
        return [delta for letter in text for delta in self._read(letter)]

    def finish(self, finish_reason: FinishReason) -> Sequence[Delta]:
        return self._read(self._held)

    def _read(self, letter: str) -> Sequence[Delta]:
        if letter == "C":
            self._calls += 1
            return [ToolCallStart(self._calls, f"call_{self._calls}", "f")]
        if letter == "E":
            self.has_complete_call = self._calls >= 0
            return []
        if letter == "a" and self._calls >= 0:
            return [ToolCallArguments(self._calls, letter)]
        if letter == "r":
            return [ReasoningDelta(letter)]
        return [ContentDelta(letter)] if letter else []


def make_answer(**fields: Any) -> ChatAnswer:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return ChatAnswer(ChatCompletionRequest.model_validate(body), LetterParser)


def new_choice() -> Choice:
    return Choice(0, 0, CompletionParameters("key", "id"))


def whole(answer: ChatAnswer, sent: Sequence[TextChunk]) -> dict[str, Any]:
    choice = new_choice()
    choice.finish_reason = sent[-1].finish_reason
    return dict(orjson.loads(orjson.dumps(answer.choice(0, choice, sent))))


def streamed(answer: ChatAnswer, sent: Sequence[TextChunk]) -> list[dict[str, Any]]:
    """The choices of all events."""
    frames, choice = answer.frames({"id": "x"}), new_choice()
    body = b"".join(frames.chunk(choice, chunk) for chunk in sent)
    return [orjson.loads(event.removeprefix(b"data: "))["choices"][0] for event in body.split(b"\n\n") if event]


def added_up(choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The message that a client makes of the deltas."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    for delta in (choice["delta"] for choice in choices):
        message["content"] += delta.get("content", "")
        message["reasoning_content"] += delta.get("reasoning_content", "")
        for part in delta.get("tool_calls", ()):
            if "id" in part:
                call = {"id": part["id"], "type": part["type"], "function": dict(part["function"])}
                assert part["index"] == len(message["tool_calls"])
                message["tool_calls"].append(call)
            else:
                message["tool_calls"][part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    return message


TEXTS = st.lists(st.text("rCaEx é", max_size=5), min_size=1, max_size=8)
REASONS = st.sampled_from([FinishReason.STOP, FinishReason.LENGTH])


@given(TEXTS, REASONS, st.booleans())
def test_the_deltas_of_a_stream_add_up_to_the_whole_answer(
    texts: list[str], reason: FinishReason, with_reasoning: bool
) -> None:
    answer, sent = make_answer(include_reasoning=with_reasoning), chunks(*texts, reason=reason)
    choices, choice = streamed(answer, sent), whole(answer, sent)
    message, expected = added_up(choices), choice["message"]
    assert message["content"] == (expected["content"] or "")
    assert message["reasoning_content"] == expected.get("reasoning_content", "")
    assert message["tool_calls"] == expected.get("tool_calls", [])
    assert [item["finish_reason"] for item in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1]["finish_reason"] == choice["finish_reason"]
    assert with_reasoning or not message["reasoning_content"]


@given(TEXTS)
def test_the_finish_reason_is_tool_calls_if_the_model_stopped_behind_a_complete_call(texts: list[str]) -> None:
    text = "".join(texts)
    is_complete = "E" in text.partition("C")[2]
    stopped = whole(make_answer(), chunks(*texts, reason=FinishReason.STOP))
    cut_off = whole(make_answer(), chunks(*texts, reason=FinishReason.LENGTH))
    assert stopped["finish_reason"] == ("tool_calls" if is_complete else "stop")
    assert cut_off["finish_reason"] == "length"


def test_the_content_is_null_if_there_are_only_calls() -> None:
    assert whole(make_answer(), chunks("CaE", reason=FinishReason.STOP))["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [{"id": "call_0", "type": "function", "function": {"name": "f", "arguments": "a"}}],
    }


def test_no_logprob_is_lost_while_the_parser_holds_text_back() -> None:
    sent = chunks("a", "b", "c", reason=FinishReason.STOP)
    for chunk in sent:
        chunk.logprobs_json = LOGPROBS
    choices = streamed(make_answer(logprobs=True), sent)
    assert sum(len(choice["logprobs"]["content"]) for choice in choices if choice["logprobs"]) == 3
