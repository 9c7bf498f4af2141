"""From the command line's words to the body of a request."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO


class UsageError(Exception):
    """The command line asks for something that can't be meant; the message says what to write instead."""


def read_prompt(word: str | None, file: Path | None, stdin: BinaryIO) -> str:
    """The prompt: the argument, a file, or standard input (`-`, or none of the others with something piped in).

    One line break at the very end of a file or of standard input is left out, as shells do: editors and `echo` put it
    there, and a model would go on behind it on a new line. UsageError.
    """
    if word is not None and file is not None:
        raise UsageError("Give the prompt as an argument or with --file, not both.")
    if file is not None:
        try:
            return _text(file.read_bytes(), str(file))
        except OSError as error:
            raise UsageError(f"{file} can't be read: {error.strerror}.") from error
    if word is not None and word != "-":
        return word
    if word is None and stdin.isatty():
        raise UsageError('Give a prompt: complete "Once upon", complete --file story.txt, or something | complete.')
    return _text(stdin.read(), "standard input")


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text (byte {error.start}).") from error


def parse_settings(items: Iterable[str]) -> dict[str, Any]:
    """`name=json` pairs as fields. What is not JSON is a string: `user=me` needs no quotes. UsageError."""
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


def request_body(
    prompt: str, options: Mapping[str, Any], settings: Mapping[str, Any], *, stream: bool
) -> dict[str, Any]:
    """The body without its model. `settings` go before `options`, of which those that are None are left out.

    A stream's usage is asked for, which servers refuse of an answer that is none.
    """
    streams = settings.get("stream", stream)
    return {
        "prompt": prompt,
        "stream": stream,
        **({"stream_options": {"include_usage": True}} if streams else {}),
        **{name: value for name, value in options.items() if value is not None},
        **settings,
    }
