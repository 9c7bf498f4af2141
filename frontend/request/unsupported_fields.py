"""Fields of OpenAI's and vLLM's completions that we do not implement, and the values with which they change nothing.

Clients send many of them all the time. A neutral value is fine; any other is
refused by name, never ignored in silence. A field becomes implemented by moving from here into schemas.py.
"""

from __future__ import annotations

from typing import Any

# Null is neutral for every field. An entry lists what else is; ANYTHING is for fields without effect on the answer.
ANYTHING: tuple[Any, ...] | None = None

NEUTRAL_VALUES: dict[str, tuple[Any, ...] | None] = {
    "allowed_token_ids": ([],),
    "cache_salt": (),
    "kv_transfer_params": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "request_id": ANYTHING,
    "spaces_between_special_tokens": (True,),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
}
_GUIDED_PREFIX = "guided_"  # vLLM's guided_json, guided_regex, ...

STREAM_OPTIONS_NEUTRAL_VALUES: dict[str, tuple[Any, ...] | None] = {"include_obfuscation": (False,)}


def is_known(name: str) -> bool:
    """Whether OpenAI or vLLM have this field and we do not implement it."""
    return name in NEUTRAL_VALUES or name.startswith(_GUIDED_PREFIX)


def is_neutral(name: str, value: Any) -> bool:
    """Whether this value of a known field asks for nothing."""
    return _is_one_of(value, NEUTRAL_VALUES.get(name, ()))


def is_neutral_stream_option(name: str, value: Any) -> bool:
    """The same for the known fields inside stream_options."""
    return _is_one_of(value, STREAM_OPTIONS_NEUTRAL_VALUES[name])


def _is_one_of(value: Any, neutral: tuple[Any, ...] | None) -> bool:
    return value is None or neutral is ANYTHING or any(_is_same(value, item) for item in neutral or ())


def _is_same(value: Any, other: Any) -> bool:
    # In Python True == 1: a boolean where a number belongs is not that number.
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)
