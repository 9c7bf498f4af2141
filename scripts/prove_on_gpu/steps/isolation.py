"""Bad guides beside ten good requests: each bad one is a 400 of its own, and the ten complete as if alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from scripts.prove_on_gpu.completions import Completions
from scripts.prove_on_gpu.context import Context
from scripts.prove_on_gpu.outcome import Outcome, StepFailedError, Table
from scripts.prove_on_gpu.server import Server

_GOOD = 10
_TOKENS = 200
_BAD: dict[str, dict[str, Any]] = {
    "an unclosed regex": {"guided_regex": "(ab"},
    "a regex with a back reference": {"guided_regex": r"(a)\1"},
    "a Lark grammar": {"guided_grammar": 'start: "a" | "b"'},
    "a grammar without a root": {"guided_grammar": 'other ::= "a"'},
    "a grammar with an unknown rule": {"guided_grammar": "root ::= missing"},
    "a schema of an unknown type": {"guided_json": {"type": "person"}},
    "a schema with an unknown reference": {"guided_json": {"$ref": "#/$defs/missing"}},
    "a schema that is no JSON": {"guided_json": "{"},
}


def run(context: Context) -> Outcome:
    """Fails if a bad guide gets a 5xx, or if a good request is felt to change."""
    server = context.server
    assert server is not None
    body = {"prompt": "Once upon a time", "max_tokens": _TOKENS, "ignore_eos": True}
    with ThreadPoolExecutor(_GOOD) as pool:
        good = [pool.submit(_complete, server, body) for _ in range(_GOOD)]
        statuses = {name: _status(server, fields) for name, fields in _BAD.items()}
        results = [future.result(context.left_s()) for future in good]
    after = _complete(server, body)
    complete = sum(length == _TOKENS for length in results)
    rows: list[tuple[str, ...]] = [(name, str(status)) for name, status in statuses.items()]
    rows.append((f"the {_GOOD} good requests", f"{complete} complete"))
    rows.append(("a request after them", "complete" if after == _TOKENS else f"{after} tokens"))
    data = {"statuses": statuses, "complete": complete, "after": after}
    outcome = Outcome(
        f"{complete} of {_GOOD} complete beside {len(_BAD)} bad guides", (Table(("request", "result"), rows),), data
    )
    if any(status >= 500 for status in statuses.values()) or complete < _GOOD or after < _TOKENS:
        raise StepFailedError("A bad guide was answered with a 5xx, or others felt it.", outcome)
    return outcome


def _status(server: Server, fields: dict[str, Any]) -> int:
    with Completions(server) as completions:
        return completions.post(prompt="Write: ", max_tokens=8, **fields).status_code


def _complete(server: Server, body: dict[str, Any]) -> int:
    """Returns the number of tokens of a completion; 0 if it failed."""
    with Completions(server) as completions:
        answer = completions.post(**body)
        return int(answer.json()["usage"]["completion_tokens"]) if answer.is_success else 0
