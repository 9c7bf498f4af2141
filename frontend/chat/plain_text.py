"""Keeps the text of a chat's client from being parsed as tokens that only the template may write.

A marker, which is a noncharacter of Unicode, goes into each string of a request wherever a token's spelling could
arise: inside each complete spelling, behind an end that begins one, and before a start that ends one. The template
copies the markers with the text. In the rendered prompt they are removed, and each spelling around the place of a
marker is a plain span. The template's own tokens have no marker inside.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

from llm_pipeline.chat_templates.environment import MARKER
from llm_pipeline.chat_templates.meter import ChatTemplateError
from llm_pipeline.protocol.model_info import ChatFormat

_MAX_DEPTH = 256


class Spellings:
    """A set of tokens, and where their spellings may arise."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._tokens = sorted({token for token in tokens if token}, key=len, reverse=True)
        lowered = [token.lower() for token in self._tokens]  # a template may change the case
        self._pattern = re.compile(_one_of(self._tokens))
        self._any_case = re.compile(self._pattern.pattern, re.IGNORECASE)
        self._beginnings = frozenset(token[:end] for token in lowered for end in range(1, len(token)))
        self._endings = frozenset(token[start:] for token in lowered for start in range(1, len(token)))
        self._first = {beginning for beginning in self._beginnings if len(beginning) == 1}
        self._last = {ending for ending in self._endings if len(ending) == 1}
        self._all = "\0".join(lowered)
        self._longest = max(map(len, self._tokens), default=0)

    def marked(self, text: str, *, may_be_inside: bool = False) -> str:
        """The text with its markers. The same object if there are none.

        `may_be_inside`: also a text that is a part of a token, which a template could write on both sides of it. Not
        for all texts: a template compares the "object" of a tool's schema, which is a part of <|object_ref_start|>.
        """
        if MARKER in text:
            text = text.replace(MARKER, "")
        if not self._longest or not text:
            return text
        start = MARKER if self._may_end_token(text) or (may_be_inside and self._is_inside_token(text)) else ""
        end = MARKER if self._may_begin_token(text) else ""
        if self._any_case.search(text) is not None:
            text = self._any_case.sub(_with_marker, text)
        if not start and not end:
            return text
        # Next to the visible text: a template that strips the spaces would leave a marker outside them alone.
        bare = text.strip()
        before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
        return f"{before}{start}{bare}{end}{after}" if bare else text

    def spans(self, text: str, marks: Sequence[int]) -> tuple[int, ...]:
        """Starts and ends of the spellings in `text` that have one of `marks`, which ascend, inside."""
        spans: list[int] = []
        ahead = iter(marks)
        mark = next(ahead, None)
        for match in self._pattern.finditer(text):
            start, end = match.span()
            while mark is not None and mark <= start:
                mark = next(ahead, None)
            if mark is None:
                break
            if mark < end or end - start == 1:  # the marker in a token of one character is behind it
                spans += (start, end)
        return tuple(spans)

    def _may_begin_token(self, text: str) -> bool:
        tail = text.rstrip()[-self._longest :].lower()
        return any(
            not tail[start:].isalnum() and tail[start:] in self._beginnings
            for start, character in enumerate(tail)
            if character in self._first
        )

    def _may_end_token(self, text: str) -> bool:
        head = text.lstrip()[: self._longest].lower()
        return any(
            not head[: end + 1].isalnum() and head[: end + 1] in self._endings
            for end, character in enumerate(head)
            if character in self._last
        )

    def _is_inside_token(self, text: str) -> bool:
        bare = text.strip()
        return 0 < len(bare) < self._longest and bare.lower() in self._all


def _one_of(tokens: Sequence[str]) -> str:
    """A pattern for the longest of several tokens, whose common beginnings are tried once.

    A megabyte of "<" takes 0.7 s with a list of 250 alternatives that begin with it.
    """
    return _pattern_of(sorted(tokens)) if tokens else "(?!)"


def _pattern_of(texts: Sequence[str]) -> str:
    """The pattern for sorted, distinct texts; one of them may be empty."""
    pairs = zip(texts[0], texts[-1], strict=False)
    common = "".join(left for left, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    rests = [text[len(common) :] for text in texts]
    if len(rests) == 1:
        return re.escape(common)
    groups = [_pattern_of(list(group)) for _, group in itertools.groupby(filter(None, rests), itemgetter(0))]
    # A longer token comes before the shorter one that it begins with.
    return f"{re.escape(common)}(?:{'|'.join(groups)}){'?' if not rests[0] else ''}"


def _with_marker(match: re.Match[str]) -> str:
    return f"{match[0][:1]}{MARKER}{match[0][1:]}"


class PlainText:
    """Marks the strings of a request, and finds their spans in the prompt.

    In the messages of the assistant, tokens such as <think> stay tokens unless they are special: the client returns
    there what the model wrote, and templates split that text at them.
    """

    def __init__(self, chat: ChatFormat) -> None:
        added = [token for token in chat.added_tokens if _is_markup(token) and _is_written_by(token, chat)]
        self._special = Spellings(chat.special_tokens)
        self._all = Spellings((*chat.special_tokens, *added))

    def marked_message(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """The message with markers in all strings but the role. The same object if there are none."""
        spellings = self._special if message.get("role") == "assistant" else self._all
        changed: dict[str, Any] = {}
        for key, value in message.items():
            if key == "role" or value is None:
                continue
            if type(value) is str:
                marked: Any = spellings.marked(value, may_be_inside=True)
            elif key == "content":
                marked = [_marked_part(part, spellings) for part in value] if isinstance(value, list) else value
                marked = value if all(new is old for new, old in zip(marked, value, strict=True)) else marked
            else:
                marked = _marked(value, spellings)
            if marked is not value:
                changed[key] = marked
        return {**message, **changed} if changed else message

    def marked(self, value: Any) -> Any:
        """Tools, documents or other values with the markers in their strings, and in the keys of their objects."""
        return _marked(value, self._all)

    def unmarked(self, text: str) -> tuple[str, tuple[int, ...]]:
        """The prompt without markers, and its plain spans."""
        if MARKER not in text:
            return text, ()
        parts = text.split(MARKER)
        marks, position = [], 0
        for part in parts[:-1]:
            position += len(part)
            marks.append(position)
        bare = "".join(parts)
        return bare, self._all.spans(bare, marks)


@lru_cache(maxsize=64)
def plain_text_of(chat: ChatFormat) -> PlainText:
    """Making one takes a millisecond for a few hundred tokens."""
    return PlainText(chat)


def _is_markup(token: str) -> bool:
    """Whether a token is more than a word or spaces, which some vocabularies add for better compression."""
    return not token.isspace() and any(not (character.isalnum() or character.isspace()) for character in token)


def _is_written_by(token: str, chat: ChatFormat) -> bool:
    return any(token in source for _, source in chat.templates)


def _marked_part(part: Any, spellings: Spellings) -> Any:
    """A part of a content, such as {"type": "text", "text": "..."}."""
    if not isinstance(part, dict):
        return _marked(part, spellings)
    entries = {
        key: spellings.marked(value, may_be_inside=key == "text") if type(value) is str else _marked(value, spellings)
        for key, value in part.items()
    }
    return part if all(entries[key] is value for key, value in part.items()) else entries


def _marked(value: Any, spellings: Spellings, depth: int = 0) -> Any:
    """A copy with markers. The same object if there are none, so that most requests are not copied."""
    if type(value) is str:
        return spellings.marked(value)
    if depth > _MAX_DEPTH:
        raise ChatTemplateError(f"the request has more than {_MAX_DEPTH} levels of objects and lists")
    if isinstance(value, (list, tuple)):
        items = [_marked(item, spellings, depth + 1) for item in value]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else items
    if isinstance(value, dict):
        entries = {
            spellings.marked(key) if type(key) is str else key: _marked(item, spellings, depth + 1)
            for key, item in value.items()
        }
        is_same = all(
            new_key is old_key and new is old
            for (new_key, new), (old_key, old) in zip(entries.items(), value.items(), strict=False)
        )
        return value if is_same and len(entries) == len(value) else entries
    return value
