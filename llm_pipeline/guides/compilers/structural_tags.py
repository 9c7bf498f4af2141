"""Structural tags: text in which tags, such as a model's tool calls, contain JSON that follows a schema.

The notation is xgrammar's (python/xgrammar/structural_tag.py at v0.1.32), of which this is the part that llguidance can
follow. It is translated to a Lark grammar.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from llm_pipeline.guides.masks import GuideError

_MAX_PARTS = 1024
_MAX_DEPTH = 16
_ANY_TEXT = "/(?s:.*)/"

# A schema, or a regular expression, and the place of it for messages -> the part of a rule that matches it.
SchemaRule = Callable[[Any, str], str]
RegexRule = Callable[[str], str]


class StructuralTagGrammar:
    """Translates one structural tag. `special_tokens` maps the text of special tokens, which are not text, to ids."""

    def __init__(self, special_tokens: Mapping[str, int], schema_rule: SchemaRule, regex_rule: RegexRule) -> None:
        self._special_tokens = special_tokens
        self._schema_rule = schema_rule
        self._regex_rule = regex_rule
        self._rules: list[str] = []

    def lark(self, source: str) -> str:
        """Returns the grammar. Raises GuideError if the tag is invalid or has a part that can't be followed."""
        try:
            document = json.loads(source)
        except (RecursionError, ValueError):
            raise GuideError("It is not valid JSON.") from None
        if not isinstance(document, dict) or document.get("type") != "structural_tag":
            raise GuideError('It must be an object with type "structural_tag" and a format.')
        self._rules = []
        start = self._rule(document.get("format"), "format", 0)
        return "\n".join([f"start: {start}", *self._rules])

    def _rule(self, part: Any, place: str, depth: int) -> str:
        """Adds the rule of a part, and returns its name."""
        if depth > _MAX_DEPTH or len(self._rules) > _MAX_PARTS:
            raise GuideError("It has too many parts.")
        kind = part.get("type") if isinstance(part, dict) else None
        translate = _PARTS.get(kind) if isinstance(kind, str) else None
        if translate is None:
            raise GuideError(f"{place} must be an object with one of the types {', '.join(_PARTS)}.")
        return self._add(translate(self, part, place, depth + 1))

    def _add(self, body: str) -> str:
        name = f"part_{len(self._rules)}"
        self._rules.append(f"{name}: {body}")
        return name

    def _rules_of(self, parts: Any, place: str, depth: int) -> list[str]:
        if not isinstance(parts, list) or not parts:
            raise GuideError(f"{place} must be a list with at least one entry.")
        return [self._rule(part, f"{place}[{index}]", depth) for index, part in enumerate(parts)]

    # --- The kinds of parts: each returns the body of a rule ----------------------------------------------------------

    def _const_string(self, part: Any, place: str, depth: int) -> str:
        return self._text(part.get("value"), f"{place}.value")

    def _json_schema(self, part: Any, place: str, depth: int) -> str:
        return self._schema_rule(part.get("json_schema"), place)

    def _regex(self, part: Any, place: str, depth: int) -> str:
        pattern = part.get("pattern")
        if not isinstance(pattern, str):
            raise GuideError(f"{place}.pattern must be a string.")
        return self._regex_rule(pattern)

    def _any_text(self, part: Any, place: str, depth: int) -> str:
        if part.get("excludes"):
            raise GuideError(f"{place}.excludes is not supported.")
        return _ANY_TEXT

    def _sequence(self, part: Any, place: str, depth: int) -> str:
        return " ".join(self._rules_of(part.get("elements"), f"{place}.elements", depth))

    def _or(self, part: Any, place: str, depth: int) -> str:
        return " | ".join(self._rules_of(part.get("elements"), f"{place}.elements", depth))

    def _tag(self, part: Any, place: str, depth: int) -> str:
        begin, end = self._text(part.get("begin"), f"{place}.begin"), part.get("end")
        content = part.get("content")
        if isinstance(content, dict) and content.get("type") == "any_text":  # up to the first end
            return f"{begin} {self._text_up_to(end, f'{place}.end')}"
        # A client knows what a tag begins with, such as the name of its function, rather than where it is.
        inner = self._rule(content, f"the tag that begins with {_literal(part['begin'])}", depth)
        return f"{begin} {inner} {self._text(end, f'{place}.end')}"

    def _tags_with_separator(self, part: Any, place: str, depth: int) -> str:
        tag = self._add(" | ".join(self._rules_of(part.get("tags"), f"{place}.tags", depth)))
        more = "" if part.get("stop_after_first") else f" ({self._text(part.get('separator'), place)} {tag})*"
        return f"{tag}{more}" if part.get("at_least_one") else f"({tag}{more})?"

    def _triggered_tags(self, part: Any, place: str, depth: int) -> str:
        tags, triggers = part.get("tags"), part.get("triggers")
        if not isinstance(tags, list) or not isinstance(triggers, list) or len(triggers) != 1:
            raise GuideError(f"{place} must have a list of tags and a list with one trigger.")
        trigger = triggers[0]
        rests = []
        for index, tag in enumerate(tags):
            begin = tag.get("begin") if isinstance(tag, dict) else None
            if not isinstance(begin, str) or not isinstance(trigger, str) or not begin.startswith(trigger):
                raise GuideError(f"{place}.tags[{index}].begin must start with the trigger.")
            rests.append({**tag, "begin": begin[len(trigger) :]})
        tag_rule = self._add(" | ".join(self._rules_of(rests, f"{place}.tags", depth)))
        called = self._add(f"{self._text_up_to(trigger, f'{place}.triggers')} {tag_rule}")
        if part.get("stop_after_first"):
            return called if part.get("at_least_one") else f"{called} | {_ANY_TEXT}"
        return f"{called}{'+' if part.get('at_least_one') else '*'} {_ANY_TEXT}"

    # --- Text and special tokens --------------------------------------------------------------------------------------

    def _text(self, value: Any, place: str) -> str:
        """A literal, in which special tokens are those tokens."""
        if not isinstance(value, str):
            raise GuideError(f"{place} must be a string.")
        parts, left = [], value
        while left:
            found = [(position, -len(token)) for token in self._special_tokens if (position := left.find(token)) >= 0]
            if not found:
                parts.append(_literal(left))
                break
            position, length = min(found)
            token = left[position : position - length]
            parts += [*([_literal(left[:position])] if position else []), self._special(token)]
            left = left[position - length :]
        return " ".join(parts)

    def _special(self, token: str) -> str:
        return f"<[{self._special_tokens[token]}]>"

    def _text_up_to(self, end: Any, place: str) -> str:
        """Any text up to the first `end`, which is included."""
        if not isinstance(end, str) or not end:
            raise GuideError(f"{place} must be a string that is not empty.")
        if end in self._special_tokens:
            return f"{_ANY_TEXT} {self._special(end)}"
        name = f"part_{len(self._rules)}"
        self._rules.append(f"{name}[lazy]: {_ANY_TEXT} {_literal(end)}")
        return name


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


_PARTS: Mapping[str, Callable[[StructuralTagGrammar, Any, str, int], str]] = {
    "const_string": StructuralTagGrammar._const_string,
    "json_schema": StructuralTagGrammar._json_schema,
    "regex": StructuralTagGrammar._regex,
    "any_text": StructuralTagGrammar._any_text,
    "sequence": StructuralTagGrammar._sequence,
    "or": StructuralTagGrammar._or,
    "tag": StructuralTagGrammar._tag,
    "tags_with_separator": StructuralTagGrammar._tags_with_separator,
    "triggered_tags": StructuralTagGrammar._triggered_tags,
}
