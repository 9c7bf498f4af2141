"""Checks of request fields by their effect: each makes completions that differ only in the field.

A check returns None if it saw the effect, or a sentence about what it saw instead. A field that the server rejects
raises RefusedError.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from scripts.prove_on_gpu.completions import Completions, RefusedError
from scripts.prove_on_gpu.outcome import StepFailedError

_PROMPT = "Once upon a time, in a small village, there was"
_REPETITIVE = "one two three one two three one two three one two three one two three one two three"
_HOT: dict[str, Any] = {"prompt": _PROMPT, "temperature": 1.5, "max_tokens": 24, "ignore_eos": True}
_GREEDY: dict[str, Any] = {"prompt": _PROMPT, "max_tokens": 24, "ignore_eos": True}
_FORCED = 100  # the largest bias: the token outweighs all others


@dataclass(frozen=True)
class Bench:
    """What the checks work on. `eos` is a token that ends a text; None if the model has none."""

    completions: Completions
    eos: int | None
    longest_completion: int  # tokens of a completion of a short prompt

    def ids(self, **body: Any) -> list[int]:
        """Returns the tokens of one completion."""
        return self.completions.ids(**body)

    def greedy(self, **fields: Any) -> list[int]:
        """Returns the tokens of the greedy completion, with further fields."""
        return self.ids(**{**_GREEDY, **fields})

    def hot(self, **fields: Any) -> list[int]:
        """Returns the tokens of a completion that is sampled at a high temperature, with further fields."""
        return self.ids(**{**_HOT, **fields})


@dataclass(frozen=True)
class FieldCheck:
    """A check, and the field that it is about: its name in requests and among the capabilities in /v1/models."""

    field: str
    effect: str
    run: Callable[[Bench], str | None]
    capability: str | None = None  # if it has another name


def _unless(condition: bool, otherwise: str) -> str | None:
    return None if condition else otherwise


def _greedy_repeats(bench: Bench) -> str | None:
    return _unless(bench.greedy() == bench.greedy(), "two greedy completions differ")


def _unseeded_differ(bench: Bench) -> str | None:
    return _unless(bench.hot() != bench.hot(), "two sampled completions without a seed are the same")


def _seed(bench: Bench) -> str | None:
    first, again, other = (bench.hot(seed=seed) for seed in (7, 7, 8))
    if first != again:
        return "the same seed gave two texts"
    return _unless(first != other, "two seeds gave the same text")


def _reduces_to_greedy(**fields: Any) -> Callable[[Bench], str | None]:
    def check(bench: Bench) -> str | None:
        return _unless(bench.hot(**fields) == bench.greedy(), f"sampling with {fields} is not greedy")

    return check


def _changes_repetition(**fields: Any) -> Callable[[Bench], str | None]:
    """A greedy completion of a repetitive prompt, with and without a penalty."""

    def check(bench: Bench) -> str | None:
        body = {"prompt": _REPETITIVE, "max_tokens": 32}
        return _unless(bench.greedy(**body, **fields) != bench.greedy(**body), f"{fields} changes nothing")

    return check


def _logit_bias(bench: Bench) -> str | None:
    token = bench.greedy()[3]
    forced = bench.greedy(logit_bias={str(token): _FORCED}, max_tokens=4)
    return _unless(forced == [token] * 4, f"a bias of {_FORCED} for token {token} gave {forced}")


def _bad_words(bench: Bench) -> str | None:
    first = bench.completions.choice(**{**_GREEDY, "max_tokens": 1})
    token, text = first["token_ids"][0], first["text"]
    return _unless(bench.greedy(bad_words=[text])[0] != token, f"the forbidden text {text!r} was generated")


def _stop_token_ids(bench: Bench) -> str | None:
    free = bench.greedy()
    stopped = bench.greedy(stop_token_ids=[free[5]])
    return _unless(
        len(stopped) <= free.index(free[5]) + 1, f"{len(stopped)} tokens with a stop token among the first 6"
    )


def _min_tokens(bench: Bench) -> str | None:
    token = bench.greedy()[2]
    if len(bench.greedy(stop_token_ids=[token])) > 3:
        return "not checked: a stop token does not end the text"
    length = len(bench.greedy(stop_token_ids=[token], min_tokens=8))
    return _unless(length >= 8, f"min_tokens 8 gave {length} tokens")


def _ignore_eos(bench: Bench) -> str | None:
    if bench.eos is None:
        return "not checked: the model has no end token"
    length = len(bench.greedy(logit_bias={str(bench.eos): _FORCED}))
    return _unless(length == _GREEDY["max_tokens"], f"ignore_eos gave {length} tokens of {_GREEDY['max_tokens']}")


def _stop(bench: Bench) -> str | None:
    text = bench.completions.choice(**_GREEDY)["text"]
    word = text[len(text) // 2 : len(text) // 2 + 4]
    choice = bench.completions.choice(**_GREEDY, stop=[word])
    is_cut = choice["text"] == text[: text.index(word)] and choice["finish_reason"] == "stop"
    return _unless(is_cut, f"stop {word!r} gave {choice['text']!r}, {choice['finish_reason']}")


def _max_tokens(bench: Bench) -> str | None:
    choice = bench.completions.choice(**{**_GREEDY, "max_tokens": 9})
    found = (len(choice["token_ids"]), choice["finish_reason"])
    return _unless(found == (9, "length"), f"max_tokens 9 gave {found[0]} tokens, {found[1]}")


def _n(bench: Bench) -> str | None:
    choices = bench.completions.document(**_HOT, n=3)["choices"]
    return _unless(len({choice["text"] for choice in choices}) == 3, "n 3 did not give three different texts")


def _logprobs(count: int) -> Callable[[Bench], str | None]:
    def check(bench: Bench) -> str | None:
        body = bench.completions.choice(**_GREEDY, logprobs=count)["logprobs"]
        values = body["token_logprobs"]
        if len(values) != _GREEDY["max_tokens"] or not all(math.isfinite(value) and value <= 0 for value in values):
            return f"{len(values)} logprobs for {_GREEDY['max_tokens']} tokens, or some above 0"
        if count == 0:
            return None
        best = [max(top.values()) for top in body["top_logprobs"]]
        # bf16 logits tie, so that the chosen token may be the second of two equal ones.
        is_best = all(abs(value - top) < 1e-3 for value, top in zip(values, best, strict=True))
        return _unless(is_best, "the greedy token is not the most likely one in top_logprobs")

    return check


def _prompt_logprobs(bench: Bench) -> str | None:
    body = bench.completions.choice(prompt=_PROMPT, max_tokens=2, echo=True, logprobs=0)["logprobs"]
    values = body["token_logprobs"]
    is_whole = values[0] is None and len(values) > 5 and all(value <= 0 for value in values[1:])
    return _unless(is_whole, f"echo with logprobs gave {values[:4]}")


def _time_limit(bench: Bench) -> str | None:
    started = time.monotonic()
    limit = {"x-request-timeout-s": "0.3"}
    answer = bench.completions.post(headers=limit, **{**_GREEDY, "max_tokens": bench.longest_completion})
    took_s = time.monotonic() - started
    return _unless(answer.status_code == 504 and took_s < 5, f"status {answer.status_code} after {took_s:.1f} s")


def _accepted(**fields: Any) -> Callable[[Bench], str | None]:
    def check(bench: Bench) -> str | None:
        return _unless(bench.greedy(**fields) == bench.greedy(), f"{fields} changed a greedy text")

    return check


CHECKS = (
    FieldCheck("temperature", "0 repeats", _greedy_repeats),
    FieldCheck("temperature", "1.5 without a seed gives another text each time", _unseeded_differ),
    FieldCheck("seed", "repeats a text; another seed gives another", _seed),
    FieldCheck("top_k", "1 is greedy", _reduces_to_greedy(top_k=1)),
    FieldCheck("top_p", "0.0001 is greedy", _reduces_to_greedy(top_p=0.0001)),
    FieldCheck("min_p", "1 is greedy", _reduces_to_greedy(min_p=1.0)),
    FieldCheck("repetition_penalty", "changes a repetitive text", _changes_repetition(repetition_penalty=2.0)),
    FieldCheck("presence_penalty", "changes a repetitive text", _changes_repetition(presence_penalty=2.0)),
    FieldCheck("frequency_penalty", "changes a repetitive text", _changes_repetition(frequency_penalty=2.0)),
    FieldCheck("logit_bias", "100 forces a token", _logit_bias),
    FieldCheck("bad_words", "forbids the first word", _bad_words),
    FieldCheck("min_tokens", "holds back a stop token", _min_tokens),
    FieldCheck("ignore_eos", "goes on after a forced end token", _ignore_eos),
    FieldCheck("stop_token_ids", "ends at the token", _stop_token_ids),
    FieldCheck("stop", "ends before the text", _stop),
    FieldCheck("max_tokens", "is exact", _max_tokens),
    FieldCheck("n", "gives different texts", _n),
    FieldCheck("logprobs", "0: the chosen tokens'", _logprobs(0)),
    FieldCheck("logprobs", "2: the most likely tokens'", _logprobs(2), "top_logprobs"),
    FieldCheck("echo", "with logprobs: the prompt's", _prompt_logprobs, "prompt_logprobs"),
    FieldCheck("x-request-timeout-s", "0.3 ends a long completion with 504", _time_limit),
    FieldCheck("priority", "is accepted (the order is not measured)", _accepted(priority=-5)),
)


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    field: str
    effect: str
    is_promised: bool  # by the capabilities in /v1/models
    verdict: str  # honored, refused, no effect, not checked or error
    detail: str

    @property
    def is_problem(self) -> bool:
        """Whether the server ignores a field in silence, or refuses one that it promises."""
        return self.verdict in ("no effect", "error") or (self.verdict == "refused" and self.is_promised)


def run_check(check: FieldCheck, bench: Bench, capabilities: dict[str, Any]) -> Finding:
    """Runs one check and judges it."""
    is_promised = _is_promised(check, capabilities)
    try:
        detail = check.run(bench)
    except RefusedError as error:
        named = error.param == check.field or check.field in error.message
        verdict = "refused" if named else "no effect"
        return Finding(check.field, check.effect, is_promised, verdict, json.dumps(error.message))
    except (httpx.HTTPError, StepFailedError) as error:
        return Finding(check.field, check.effect, is_promised, "error", f"{type(error).__name__}: {error}")
    if detail is None:
        return Finding(check.field, check.effect, is_promised, "honored", "")
    verdict = "not checked" if detail.startswith("not checked") else "no effect"
    return Finding(check.field, check.effect, is_promised, verdict, detail)


def _is_promised(check: FieldCheck, capabilities: dict[str, Any]) -> bool:
    """Fields that no capability is about are honored by every executor."""
    if check.field == "logprobs":
        most = capabilities.get("logprobs")
        return most is not None and most >= (2 if check.capability else 0)
    return bool(capabilities.get(check.capability or check.field, True))
