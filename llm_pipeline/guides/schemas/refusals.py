"""Errors of schemas: the part that can't be followed, as a JSON pointer, the cause, and what to write instead."""

from __future__ import annotations

from collections.abc import Sequence

from llm_pipeline.guides.masks import GuideError

_MAX_POINTER_CHARACTERS = 120
_MAX_QUOTED_CHARACTERS = 40


class SchemaError(GuideError):
    """A schema that can't be followed. `pointer` names the part, as in RFC 6901."""

    def __init__(self, path: Sequence[str], problem: str) -> None:
        super().__init__(sentence(f"{place_of(path)}: {problem}"))


def pointer_of(path: Sequence[str]) -> str:
    """Returns the JSON pointer (RFC 6901) of a path; "" is the whole document."""
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in path)


def place_of(path: Sequence[str]) -> str:
    """Returns the place as a message names it. The end of a long pointer is what identifies it."""
    pointer = pointer_of(path)
    if len(pointer) > _MAX_POINTER_CHARACTERS:
        pointer = "..." + pointer[-_MAX_POINTER_CHARACTERS:]
    return f"at {quotable(pointer)}" if pointer else "at the root"


def quoted(value: object) -> str:
    """Returns a part of the client's schema as a message repeats it: short, and on one line."""
    text = str(value)
    return f"`{quotable(text[:_MAX_QUOTED_CHARACTERS])}{'...' if len(text) > _MAX_QUOTED_CHARACTERS else ''}`"


def quotable(text: str) -> str:
    """Returns the text with a question mark for each character that is not printable."""
    return "".join(character if character.isprintable() else "?" for character in text)


def sentence(text: str) -> str:
    """Returns the text with a capital letter first."""
    return text[:1].upper() + text[1:]
