"""Builds the prompt and the request body from the command line."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO


class UsageError(Exception):
    """The command line is invalid. The message names the remedy."""


def read_prompt(argument: str | None, file: Path | None, stdin: BinaryIO) -> str:
    """Returns the prompt: the argument, the file's text, or standard input (`-`, or a pipe without an argument).

    One line break at the end of a file or of standard input is removed, as shells do: editors and `echo` append it, and
    the model would continue on a new line. Raises UsageError if there is no prompt, more than one, or one that is not
    UTF-8.
    """
    if argument is not None and file is not None:
        raise UsageError("Give the prompt as an argument or with --file, not both.")
    if file is not None:
        try:
            return _decode(file.read_bytes(), str(file))
        except OSError as error:
            raise UsageError(f"{file} cannot be read: {error.strerror}.") from error
    if argument is not None and argument != "-":
        return argument
    if argument is None and stdin.isatty():
        raise UsageError('Give a prompt: complete "Once upon", complete --file story.txt, or echo Once | complete.')
    return _decode(stdin.read(), "standard input")


def _decode(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text (byte {error.start}).") from error


def parse_fields(items: Iterable[str]) -> dict[str, Any]:
    """Parses `name=json` pairs; a value that is not JSON is a string, so that `user=me` needs no quotes.

    Raises UsageError for an item of another form.
    """
    fields = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise UsageError(f"--set takes name=value, as in --set logprobs=5; not {item!r}.")
        try:
            fields[name] = json.loads(value)
        except json.JSONDecodeError:
            fields[name] = value
    return fields


def unknown_fields(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """Returns a sentence for each name that a server does not know, with the one that was probably meant."""
    found = []
    for name in names:
        if name not in known:
            similar = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {similar[0]}?" if similar else ""
            found.append(f"The server has no field {name}, which has no effect there.{hint}")
    return found


def request_body(
    content: Mapping[str, Any], options: Mapping[str, Any], fields: Mapping[str, Any], *, stream: bool
) -> dict[str, Any]:
    """Returns the body without its model. `content` is the prompt or the messages.

    `fields` override `options`, of which those that are None are omitted.
    Usage is requested for a stream only, because servers reject stream_options without stream.
    """
    is_stream = fields.get("stream", stream)
    return {
        **content,
        "stream": stream,
        **({"stream_options": {"include_usage": True}} if is_stream else {}),
        **{name: value for name, value in options.items() if value is not None},
        **fields,
    }
