"""Structured output: a text of each kind of guide, checked against the guide."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scripts.prove_on_gpu.completions import Completions, RefusedError
from scripts.prove_on_gpu.context import Context
from scripts.prove_on_gpu.outcome import Outcome, StepFailedError, Table

_PROMPT = "A person as a JSON object: "
_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class GuideCheck:
    """A guide, its kind among the capabilities in /v1/models, and the test of a text."""

    name: str
    kind: str
    fields: dict[str, Any]
    fits: Callable[[str], bool]


def _is_person(text: str) -> bool:
    try:
        person = json.loads(text)
    except ValueError:
        return False
    return set(person) == {"name", "age"} and isinstance(person["name"], str) and 0 <= person["age"] <= 99


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


CHECKS = (
    GuideCheck("guided_json", "json_schema", {"guided_json": _SCHEMA}, _is_person),
    GuideCheck("response_format json_object", "json_schema", {"response_format": {"type": "json_object"}}, _is_object),
    GuideCheck(
        "guided_regex",
        "regex",
        {"guided_regex": "[0-9]{4}-[0-9]{2}"},
        lambda text: re.fullmatch("[0-9]{4}-[0-9]{2}", text) is not None,
    ),
    GuideCheck(
        "guided_choice", "regex", {"guided_choice": ["north", "south"]}, lambda text: text in {"north", "south"}
    ),
    GuideCheck(
        "guided_grammar",
        "ebnf_grammar",
        {"guided_grammar": 'root ::= ("ab" | "cd") "!"'},
        lambda text: text in {"ab!", "cd!"},
    ),
)


def run(context: Context) -> Outcome:
    """Fails if a text does not fit its guide, or if a kind that is promised is refused."""
    server = context.server
    assert server is not None
    rows: list[tuple[str, ...]] = []
    problems = []
    with Completions(server) as completions:
        promised = completions.capabilities().get("guides") or []
        for check in CHECKS:
            context.left_s()
            verdict, text = _check(completions, check)
            rows.append((check.name, verdict, text))
            if verdict not in ("honored", "refused") or (verdict == "refused") == (check.kind in promised):
                problems.append(f"{check.name} ({verdict})")
    outcome = Outcome(
        f"{len(rows)} guides; promised: {', '.join(promised) or 'none'}",
        (Table(("guide", "result", "text"), rows),),
        {"promised": promised, "guides": rows},
    )
    if problems:
        raise StepFailedError(f"Not as promised: {', '.join(problems)}.", outcome)
    return outcome


def _check(completions: Completions, check: GuideCheck) -> tuple[str, str]:
    try:
        choice = completions.choice(prompt=_PROMPT, max_tokens=200, **check.fields)
    except RefusedError as error:
        return "refused", error.message
    text = choice["text"]
    return ("honored" if check.fits(text) else "does not fit"), repr(text)
