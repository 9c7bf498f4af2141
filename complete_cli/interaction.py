"""A conversation at the terminal: reads messages and commands, asks for answers and for the results of tools."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from complete_cli.chat_answer import ChatAnswer
from complete_cli.client import CompletionError, ServerUnreachableError
from complete_cli.conversation import Conversation, load_conversation, load_tools
from complete_cli.output import Output
from complete_cli.request import UsageError

_COMMANDS = """\
/system [TEXT]  print or set the system message; /system "" removes it
/tools FILE     let the model call the tools in this JSON file; /tools "" removes them
/retry          ask for another answer to the last message
/undo           remove the last message and its answer
/clear          begin a new conversation, with the same system message and tools
/save FILE      write the conversation to a JSON file
/load FILE      continue the conversation in this file
/help           print this list
/exit           end, as Ctrl-D does
A line that ends with \\ continues on the next one. Begin a message with // for a single slash. Ctrl-C cancels an
answer."""

ReadLine = Callable[[str], str]
"""Reads a line after a prompt. Raises EOFError at the end of the input, KeyboardInterrupt on Ctrl-C."""
Ask = Callable[[Conversation, ChatAnswer], None]
"""Sends the conversation and adds the answer's choices to the ChatAnswer. Raises the errors of client.py."""


def terminal_line(prompt: str) -> str:
    """Reads a line with readline's editing and history, where Python has it."""
    with suppress(ModuleNotFoundError):
        import readline  # noqa: F401 - its import changes input()
    return input(prompt)


class Interaction:
    """One session. `new_answer` makes the printer of an answer, `explain` the message of an error."""

    def __init__(
        self,
        conversation: Conversation,
        ask: Ask,
        *,
        output: Output,
        read_line: ReadLine,
        new_answer: Callable[[], ChatAnswer],
        explain: Callable[[CompletionError | ServerUnreachableError], str],
    ) -> None:
        self.conversation = conversation
        self._ask = ask
        self._output = output
        self._read_line = read_line
        self._new_answer = new_answer
        self._explain = explain

    def run(self) -> None:
        """Reads and answers until /exit or the end of the input."""
        while True:
            try:
                text = self._read_message()
            except EOFError:
                self._output.note("")
                return
            except KeyboardInterrupt:
                self._output.note("\nCtrl-D or /exit ends the conversation.")
                continue
            if text.strip() == "/exit":
                return
            try:
                self._take(text)
            except UsageError as error:
                self._output.note(f"error: {error}")

    def _read_message(self) -> str:
        lines = [self._read_line("> ")]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self._read_line(". "))
        return "\n".join(lines)

    def _take(self, text: str) -> None:
        if text.startswith("/") and not text.startswith("//"):
            self._command(text)
        elif text.strip():
            self._turn(text.removeprefix("/") if text.startswith("//") else text)

    def _turn(self, text: str) -> None:
        """Adds a message and what follows it, up to an answer without tool calls. A failure removes all of it."""
        messages = self.conversation.messages
        start = len(messages)
        messages.append({"role": "user", "content": text})
        is_over = False
        try:
            while not is_over:
                is_over = self._answer()
        except (CompletionError, ServerUnreachableError) as error:
            del messages[start:]
            self._output.note(f"error: {self._explain(error)}")
        except (EOFError, KeyboardInterrupt):
            del messages[start:]
            self._output.note("Cancelled. The message was removed from the conversation.")

    def _answer(self) -> bool:
        """Asks for one answer and the results of its tool calls. Returns whether it has none."""
        answer = self._new_answer()
        try:
            self._ask(self.conversation, answer)
        except KeyboardInterrupt:
            if answer.calls or not answer.message["content"]:
                raise
            self._output.note("Cancelled. The text so far stays in the conversation.")
        self.conversation.messages.append(answer.message)
        for call in answer.calls:
            content = self._read_line(f"result of {call['function']['name']}> ")
            self.conversation.messages.append({"role": "tool", "tool_call_id": call["id"], "content": content})
        return not answer.calls

    def _command(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        command: Callable[[str], Any] | None = {
            "/system": self._system,
            "/tools": self._tools,
            "/retry": lambda _: self._turn(self._remove_last()),
            "/undo": lambda _: self._remove_last(),
            "/clear": lambda _: self.conversation.clear(),
            "/save": lambda argument: self.conversation.save(_path(argument)),
            "/load": self._load,
            "/help": lambda _: self._output.note(_COMMANDS),
        }.get(name)
        if command is None:
            raise UsageError(f"There is no command {name}. /help lists the commands.")
        command(rest.strip())

    def _system(self, argument: str) -> None:
        if argument:
            self.conversation.set_system("" if argument == '""' else argument)
        else:
            self._output.note(self.conversation.system or "There is no system message.")

    def _tools(self, argument: str) -> None:
        self.conversation.tools = [] if argument == '""' else load_tools(_path(argument))
        names = [str((tool.get("function") or {}).get("name")) for tool in self.conversation.tools]
        self._output.note(f"Tools: {', '.join(names) or 'none'}.")

    def _load(self, argument: str) -> None:
        loaded = load_conversation(_path(argument))
        self.conversation.messages, self.conversation.tools = loaded.messages, loaded.tools
        self._output.note(f"{len(loaded.messages)} messages.")

    def _remove_last(self) -> str:
        """Removes the last message of the user and all that follows it. Returns its text."""
        messages = self.conversation.messages
        last = max((index for index, message in enumerate(messages) if message.get("role") == "user"), default=None)
        if last is None:
            raise UsageError("There is no message of yours in this conversation.")
        text = str(messages[last].get("content") or "")
        del messages[last:]
        return text


def _path(argument: str) -> Path:
    try:
        words = shlex.split(argument)
    except ValueError as error:
        raise UsageError(f"The name of the file cannot be read: {error}.") from error
    if len(words) != 1 or not words[0]:
        raise UsageError("Give the name of one file.")
    return Path(words[0]).expanduser()
