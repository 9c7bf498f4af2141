"""One answer of a chat as it arrives: prints it, and makes the assistant's message for the history."""

from __future__ import annotations

from typing import Any

from complete_cli.conversation import Message
from complete_cli.output import Output


class ChatAnswer:
    """The first choice of an answer, streamed or whole.

    Content and tool calls go to standard output; reasoning goes to standard error, if it is wanted.
    """

    def __init__(self, output: Output, *, prints: bool, with_reasoning: bool) -> None:
        self._output = output
        self._prints = prints
        self._with_reasoning = with_reasoning
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self._open_call: int | None = None  # whose arguments are being printed

    def add(self, choice: dict[str, Any]) -> None:
        """Takes a choice of a chunk or of a whole response. Other choices than the first are ignored."""
        if choice.get("index", 0) != 0:
            return
        delta = choice.get("delta") or choice.get("message") or {}
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        if reasoning:
            self._reasoning.append(reasoning)
            if self._prints and self._with_reasoning:
                self._output.aside(reasoning)
        if delta.get("content"):
            self._content.append(delta["content"])
            self._print(delta["content"])
        for position, call in enumerate(delta.get("tool_calls") or ()):
            self._add_call(call.get("index", position), call)

    def close(self) -> None:
        """Ends the last line. Call it when the request is over, for any reason."""
        self._close_call()
        if self._prints:
            self._output.end_line()

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The tool calls as in a message."""
        return [self._calls[index] for index in sorted(self._calls)]

    @property
    def message(self) -> Message:
        """The answer as a message of the history."""
        content = "".join(self._content)
        message: Message = {"role": "assistant", "content": content or (None if self._calls else "")}
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self._calls:
            message["tool_calls"] = self.calls
        return message

    def _add_call(self, index: int, part: dict[str, Any]) -> None:
        function = part.get("function") or {}
        if index not in self._calls:
            self._close_call()
            self._calls[index] = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
            self._open_call = index
            if self._prints:
                self._output.end_line()
            self._print(f"{function.get('name', '')}(")
        call = self._calls[index]
        call["id"] += part.get("id") or ""
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""
        self._print(function.get("arguments") or "")

    def _close_call(self) -> None:
        if self._open_call is not None:
            self._open_call = None
            self._print(")\n")

    def _print(self, text: str) -> None:
        if self._prints and text:
            self._output.write(text)
