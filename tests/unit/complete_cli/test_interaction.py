"""A conversation at the terminal: messages, commands, tool results, and what a failure leaves."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from complete_cli.chat_answer import ChatAnswer
from complete_cli.client import CompletionError
from complete_cli.conversation import Conversation
from complete_cli.interaction import Interaction
from complete_cli.output import Output

CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":'}}
REST = {"index": 0, "function": {"arguments": ' "Oslo"}'}}


class Server:
    """Answers with the next of `answers`: the deltas of a stream, or an error to raise behind them."""

    def __init__(self, *answers: list[Any]) -> None:
        self.answers = list(answers)
        self.requests: list[dict[str, Any]] = []

    def ask(self, conversation: Conversation, answer: ChatAnswer) -> None:
        self.requests.append(copy.deepcopy(conversation.fields()))
        try:
            for delta in self.answers.pop(0):
                if isinstance(delta, BaseException):
                    raise delta
                answer.add({"index": 0, "delta": delta})
        finally:
            answer.close()


def typed(*lines: str | BaseException) -> Callable[[str], str]:
    """Reads these lines, and then the end of the input."""
    left: Iterator[str | BaseException] = iter(lines)

    def read(prompt: str) -> str:
        line = next(left, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    return read


def talk(server: Server, *lines: str | BaseException, conversation: Conversation | None = None) -> Conversation:
    output = Output()
    interaction = Interaction(
        conversation or Conversation(),
        server.ask,
        output=output,
        read_line=typed(*lines),
        new_answer=lambda: ChatAnswer(output, prints=True, with_reasoning=True),
        explain=str,
    )
    interaction.run()
    return interaction.conversation


def text(content: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": ""}, *({"content": part} for part in content)]


def test_answers_become_history(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    server = Server(text("Hello."), text("Fine."))
    conversation = talk(server, "/system Be brief.", "Hi", "", "How are you?", "/exit", "not read")
    assert [message["content"] for message in conversation.messages] == [
        "Be brief.", "Hi", "Hello.", "How are you?", "Fine.",
    ]  # fmt: skip
    assert [len(request["messages"]) for request in server.requests] == [2, 4]
    assert capfdbinary.readouterr().out == b"Hello.\nFine.\n"


def test_lines_are_continued_and_slashes_doubled() -> None:
    conversation = talk(Server(text("a"), text("b")), "one\\", "two", "//etc is a folder")
    assert [message["content"] for message in conversation.messages[::2]] == ["one\ntwo", "/etc is a folder"]


def test_results_of_tools_are_asked_for(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    server = Server([{"content": "Let me look."}, {"tool_calls": [CALL]}, {"tool_calls": [REST]}], text("Snow."))
    conversation = talk(server, "Weather in Oslo?", "snow, -3 C")
    assert capfdbinary.readouterr().out == b'Let me look.\nget_weather({"city": "Oslo"})\nSnow.\n'
    _, call, result, answer = conversation.messages
    assert json.loads(call["tool_calls"][0]["function"]["arguments"]) == {"city": "Oslo"}
    assert result == {"role": "tool", "tool_call_id": "call_1", "content": "snow, -3 C"}
    assert answer["content"] == "Snow."


def test_reasoning_is_apart_from_the_answer(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    server = Server([{"reasoning_content": "2 and 2"}, {"reasoning_content": " is 4"}, {"content": "4"}])
    conversation = talk(server, "2 + 2?")
    captured = capfdbinary.readouterr()
    assert captured.out == b"4\n"
    assert b"2 and 2 is 4\n" in captured.err
    assert conversation.messages[-1] == {"role": "assistant", "content": "4", "reasoning_content": "2 and 2 is 4"}


@pytest.mark.parametrize("failure", [CompletionError("The model is at its limit."), KeyboardInterrupt(), EOFError()])
def test_failed_turn_leaves_the_conversation_as_it_was(
    failure: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server([{"tool_calls": [CALL]}], [failure], text("Hello."))
    conversation = talk(server, "Weather?", "sun", "Hi")
    assert [message["content"] for message in conversation.messages] == ["Hi", "Hello."]
    message = "error: The model is at its limit." if isinstance(failure, CompletionError) else "Cancelled. The message"
    assert message in capsys.readouterr().err


def test_cancelled_answer_keeps_its_text() -> None:
    conversation = talk(Server([*text("Once"), KeyboardInterrupt()]), "Tell a story")
    assert [message["content"] for message in conversation.messages] == ["Tell a story", "Once"]


def test_interrupt_at_the_prompt_does_not_end_the_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(talk(Server(text("Hello.")), KeyboardInterrupt(), "Hi").messages) == 2
    assert "Ctrl-D or /exit" in capsys.readouterr().err


def test_retry_and_undo() -> None:
    server = Server(text("one"), text("two"), text("three"))
    conversation = talk(server, "Hi", "/retry", "More", "/undo")
    assert [message["content"] for message in conversation.messages] == ["Hi", "two"]
    assert server.requests[0] == server.requests[1]


def test_files_and_tools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my talk.json"
    (tmp_path / "tools.json").write_text(json.dumps([{"type": "function", "function": {"name": "get_weather"}}]))
    saved = talk(Server(text("Hello.")), f"/tools {tmp_path}/tools.json", "Hi", f"/save '{path}'", "/clear")
    assert saved.messages == []
    loaded = talk(Server(text("Again.")), f"/load '{path}'", "Hi again", '/tools ""')
    assert [message["content"] for message in loaded.messages] == ["Hi", "Hello.", "Hi again", "Again."]
    assert loaded.tools == []
    messages = capsys.readouterr().err
    assert "Tools: get_weather." in messages
    assert "2 messages." in messages


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/unknown", "There is no command /unknown. /help lists the commands."),
        ("/save", "Give the name of one file."),
        ("/save a b", "Give the name of one file."),
        ("/load 'a", "cannot be read: No closing quotation."),
        ("/load /none.json", "/none.json cannot be read: No such file or directory."),
        ("/retry", "There is no message of yours"),
    ],
)
def test_invalid_command_is_explained(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    talk(Server(), line, "/help", "/system")
    captured = capsys.readouterr().err
    assert message in captured
    assert "/exit           end" in captured
    assert "There is no system message." in captured
