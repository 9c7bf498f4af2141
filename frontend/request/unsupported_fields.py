"""Lists the fields of OpenAI's and vLLM's completions that are not implemented, and their no-op values.

The fields of SGLang and llama.cpp that constrain the text are among them: ignored, they would change its form.

Clients often send such fields with a value that changes nothing, which is accepted. Any other value is rejected with
the field's name. To implement a field, move it from here to schemas.py (docs/adding-a-field.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Null is a no-op for every field. An entry lists the others; ANY_VALUE is for fields without effect on the response.
ANY_VALUE: tuple[Any, ...] | None = None

NO_OP_VALUES: dict[str, tuple[Any, ...] | None] = {
    "allowed_token_ids": ([],),
    "cache_salt": (),
    "ebnf": ("",),
    "grammar": ("",),
    "json_schema": (),
    "kv_transfer_params": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "logprob_token_ids": ([],),
    "max_repetition_pattern_size": (0,),
    "min_repetition_pattern_size": (0,),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "regex": ("",),
    "repetition_min_count": (0,),
    "request_id": ANY_VALUE,
    "spaces_between_special_tokens": (True,),
    "stop_regex": ("", []),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
}
_GUIDED_PREFIX = "guided_"  # vLLM's guided_json, guided_regex, ...

# The fields of this server that do the same.
INSTEAD = {
    "ebnf": "structured_outputs.grammar",
    "grammar": "structured_outputs.grammar",
    "json_schema": "response_format or structured_outputs.json",
    "regex": "structured_outputs.regex",
    "prompt_logprobs": "echo with logprobs",
}

STREAM_OPTIONS_NO_OP_VALUES: dict[str, tuple[Any, ...] | None] = {"include_obfuscation": (False,)}


@dataclass(frozen=True)
class UnsupportedFields:
    """The fields that one operation does not implement: their no-op values, and the fields that do the same."""

    no_op_values: Mapping[str, tuple[Any, ...] | None]
    instead: Mapping[str, str]

    def is_known(self, name: str) -> bool:
        """Whether this is one of the unimplemented fields."""
        return name in self.no_op_values or name.startswith(_GUIDED_PREFIX)

    def is_no_op(self, name: str, value: Any) -> bool:
        """Whether this value of an unsupported field changes nothing."""
        return _is_one_of(value, self.no_op_values.get(name, ()))


OF_COMPLETIONS = UnsupportedFields(NO_OP_VALUES, INSTEAD)


def is_no_op_stream_option(name: str, value: Any) -> bool:
    """Whether this value of an unsupported field in stream_options changes nothing."""
    return _is_one_of(value, STREAM_OPTIONS_NO_OP_VALUES[name])


def _is_one_of(value: Any, no_op: tuple[Any, ...] | None) -> bool:
    return value is None or no_op is ANY_VALUE or any(_is_same(value, item) for item in no_op or ())


def _is_same(value: Any, other: Any) -> bool:
    # In Python True == 1, but a boolean is not a valid number.
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)
