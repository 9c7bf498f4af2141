"""Structured output: checks guides, and follows them token by token. The only module that knows llguidance.

preprocess refuses a guide that can't be used, whatever the executor; the CPU engine follows it with a GuideFollower.
TensorRT-LLM follows guides itself (its setting TRTLLM_GUIDED_DECODING), and brings llguidance with it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson

from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.fields import MAX_GUIDE_CHARACTERS, MAX_GUIDE_RULES
from llm_pipeline.protocol.messages import GUIDE_PARAM, Guide, GuideType
from llm_pipeline.runtime.big_stack import call_with_large_stack

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_log = logging.getLogger(__name__)

_ANY_JSON = "{}"
# As json.dumps writes it. Free white space would let a small model write blanks until its limit.
_JSON_STYLE: JsonCompileOptions = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
_RULE_HEAD = re.compile(r"^[ \t]*[?!]*[A-Za-z_][\w-]*(?:\[.*?\])?(?:\.\d+)?[ \t]*:", re.MULTILINE)


class GuideError(Exception):
    """A guide can't be followed any further: it grew beyond llguidance's limits. The message says which."""


def check_guide(guide: Guide) -> None:
    """PipelineError when the guide can't be used: too long, not of its language, or with parts that are not known."""
    text = guide.source or ""
    if len(text) > MAX_GUIDE_CHARACTERS:
        raise _bad(f"The {_noun(guide)} has {len(text)} characters; the limit is {MAX_GUIDE_CHARACTERS}.")
    if not text and guide.type is not GuideType.JSON:
        raise _bad(f"The {_noun(guide)} is empty; send one, or ask for no structured output.")
    if guide.type is GuideType.JSON_SCHEMA:
        _check_json_schema(text)
    if guide.type is GuideType.EBNF_GRAMMAR and (count := len(_RULE_HEAD.findall(text))) > MAX_GUIDE_RULES:
        raise _bad(f"The grammar has {count} rules; the limit is {MAX_GUIDE_RULES}.")
    if guide.type is GuideType.STRUCTURAL_TAG:
        return  # TensorRT-LLM's own notation; it checks that itself
    try:
        from llguidance import LLMatcher

        grammar = call_with_large_stack(lambda: _grammar(guide))
    except ImportError:  # an executor that has guides without it, or brings an older one, refuses what it can't use
        _log.info("llguidance is not installed or too old; the %s is not checked beforehand", _noun(guide))
        return
    if problem := call_with_large_stack(lambda: LLMatcher.validate_grammar(grammar)):
        raise _bad(f"The {_noun(guide)} can't be used: {_first_line(problem)}")


def _check_json_schema(text: str) -> None:
    try:
        schema = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _bad(f"The JSON schema is not valid JSON (line {error.lineno}, column {error.colno}).") from None
    if not isinstance(schema, dict):
        raise _bad("The JSON schema is not an object.")
    if (count := len(_references(schema))) > MAX_GUIDE_RULES:
        raise _bad(f"The JSON schema refers to {count} definitions; the limit is {MAX_GUIDE_RULES}.")


def _references(schema: dict[str, Any]) -> set[str]:
    found, left = set(), [schema]
    while left:  # not a recursion: a schema may be nested deeper than Python's
        part: Any = left.pop()
        if isinstance(part, dict):
            if isinstance(target := part.get("$ref"), str):
                found.add(target)
            left += part.values()
        elif isinstance(part, list):
            left += part
    return found


def _bad(message: str) -> PipelineError:
    return PipelineError(ErrorCode.VALUE_OUT_OF_RANGE, message, param=GUIDE_PARAM)


def _noun(guide: Guide) -> str:
    nouns = {
        GuideType.JSON: "JSON guide",
        GuideType.JSON_SCHEMA: "JSON schema",
        GuideType.REGEX: "regular expression",
        GuideType.EBNF_GRAMMAR: "grammar",
        GuideType.STRUCTURAL_TAG: "structural tag",
    }
    return nouns[guide.type]


def _first_line(problem: str) -> str:
    return problem.strip().splitlines()[0].strip().rstrip(":.")[:200] + "."


def _grammar(guide: Guide) -> str:
    """The guide in llguidance's own form. PipelineError when a grammar is in neither of the two notations.

    ImportError when this llguidance can't read guides of that type.
    """
    from llguidance import LLMatcher

    text = guide.source or ""
    if guide.type in (GuideType.JSON, GuideType.JSON_SCHEMA):
        schema = _ANY_JSON if guide.type is GuideType.JSON else text
        try:
            found: str = LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_STYLE)
        except ValueError as error:
            raise _bad(f"The JSON schema can't be used: {_first_line(str(error))}") from None
    elif guide.type is GuideType.REGEX:
        from llguidance import regex_to_lark

        # Otherwise \\d would match the digits of every script.
        found = LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(text, use_ascii='d')}/")
    else:
        from llguidance.gbnf_to_lark import any_to_lark

        try:
            found = LLMatcher.grammar_from_lark(any_to_lark(text))
        except Exception as error:  # a parser in Python that raises whatever it meets
            raise _bad("The grammar is neither GBNF (`root ::= ...`) nor Lark (`start: ...`).") from error
    return found


class GuideCompiler:
    """Makes followers for one tokenizer. `vocab_size` is the length of a row of logits; `end_id` ends a guided text.

    Made at the first guided request: it takes some 0.4 s and 40 MB for a vocabulary of 50,000.
    """

    def __init__(self, tokenizer_file: Path, *, vocab_size: int, end_id: int) -> None:
        from llguidance import LLTokenizer

        self._tokenizer = LLTokenizer(tokenizer_file.read_text(encoding="utf-8"), n_vocab=vocab_size, eos_token=end_id)
        self._vocab_size = vocab_size

    def compile(self, guide: Guide) -> ConstraintMatcher:
        """A follower at the start of the guide. GuideError when the guide is beyond llguidance's limits."""
        from llguidance import LLMatcher

        matcher = call_with_large_stack(lambda: LLMatcher(self._tokenizer, _grammar(guide), log_level=0))
        if matcher.is_error():
            raise GuideError(_first_line(matcher.get_error()))
        return ConstraintMatcher(matcher, self._vocab_size)


class ConstraintMatcher:
    """Where one text stands in its guide."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Which tokens may come next, as bool[vocab_size]; the end token is one when the text may end here."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise GuideError(_first_line(self._matcher.get_error()))
        return np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)

    def advance(self, token_ids: Sequence[int]) -> None:
        """Note what has come. Tokens that are not allowed end in a GuideError at the next `allowed`."""
        self._matcher.consume_tokens(list(token_ids))
