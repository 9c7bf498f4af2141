"""The messages and tools of a chat, and the JSON file that holds them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from complete_cli.request import UsageError

Message = dict[str, Any]
"""A message as in the API: {"role", "content", ...}."""


@dataclass
class Conversation:
    """What the next request sends. The system message, if there is one, is the first."""

    messages: list[Message] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)

    @property
    def system(self) -> str | None:
        """The text of the system message."""
        first = self.messages[0] if self.messages else {}
        return str(first["content"]) if first.get("role") == "system" else None

    def set_system(self, text: str) -> None:
        """Replaces the system message; an empty text removes it."""
        if self.system is not None:
            del self.messages[0]
        if text:
            self.messages.insert(0, {"role": "system", "content": text})

    def clear(self) -> None:
        """Removes all messages but the system message."""
        del self.messages[0 if self.system is None else 1 :]

    def fields(self) -> dict[str, Any]:
        """Returns the fields of a request."""
        return {"messages": self.messages, **({"tools": self.tools} if self.tools else {})}

    def save(self, path: Path) -> None:
        """Writes the file that `load_conversation` reads. Raises UsageError."""
        try:
            path.write_text(json.dumps(self.fields(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}.") from error


def load_conversation(path: Path) -> Conversation:
    """Reads a file that `save` wrote, the body of a request, or a list of messages. Raises UsageError."""
    content = _read_json(path)
    body = {"messages": content} if isinstance(content, list) else content
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UsageError(f"{path} holds no conversation: a JSON object with a list of `messages`, or only the list.")
    return Conversation(messages, _tools(body.get("tools") or [], path))


def load_tools(path: Path) -> list[dict[str, Any]]:
    """Reads the field `tools`, or one tool. Raises UsageError."""
    content = _read_json(path)
    return _tools([content] if isinstance(content, dict) else content, path)


def _tools(content: Any, path: Path) -> list[dict[str, Any]]:
    if not isinstance(content, list) or not all(isinstance(tool, dict) for tool in content):
        raise UsageError(f'{path} holds no tools: a JSON list of {{"type": "function", "function": {{...}}}}.')
    return content


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is not JSON: {error.msg} (line {error.lineno}, column {error.colno}).") from error
    except RecursionError as error:
        raise UsageError(f"{path} is nested too deeply.") from error
