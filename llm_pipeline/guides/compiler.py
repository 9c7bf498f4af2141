"""Guided decoding: validates guides, and matches them token by token. The only module that imports llguidance.

preprocess rejects invalid guides for every executor; the CPU engine enforces them with a ConstraintMatcher.
TensorRT-LLM has guided decoding of its own (TRTLLM_GUIDED_DECODING), and depends on llguidance itself.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson

from llm_pipeline.guides.mask_server import pack_row
from llm_pipeline.guides.masks import GuideError, mask_bytes
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.fields import MAX_GUIDE_CHARACTERS, MAX_GUIDE_RULES
from llm_pipeline.protocol.messages import GUIDE_PARAM, Guide, GuideType
from llm_pipeline.runtime.big_stack import call_with_large_stack

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_log = logging.getLogger(__name__)

_ANY_JSON = "{}"
# The style of json.dumps. With flexible white space, a small model may write blanks up to max_tokens.
_JSON_STYLE: JsonCompileOptions = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
_RULE_HEAD = re.compile(r"^[ \t]*[?!]*[A-Za-z_][\w-]*(?:\[.*?\])?(?:\.\d+)?[ \t]*:", re.MULTILINE)


def check_guide(guide: Guide) -> None:
    """Raises PipelineError (400) if the guide is too long, invalid, or uses unsupported features."""
    text = guide.source or ""
    if len(text) > MAX_GUIDE_CHARACTERS:
        raise _bad(f"The {_noun(guide)} has {len(text)} characters; the limit is {MAX_GUIDE_CHARACTERS}.")
    if not text and guide.type is not GuideType.JSON:
        raise _bad(f"The {_noun(guide)} is empty. Send one, or omit structured output.")
    if guide.type is GuideType.JSON_SCHEMA:
        _check_json_schema(text)
    if guide.type is GuideType.EBNF_GRAMMAR and (count := len(_RULE_HEAD.findall(text))) > MAX_GUIDE_RULES:
        raise _bad(f"The grammar has {count} rules; the limit is {MAX_GUIDE_RULES}.")
    if guide.type is GuideType.STRUCTURAL_TAG:
        return  # TensorRT-LLM's own notation, which it validates itself
    try:
        from llguidance import LLMatcher

        grammar = call_with_large_stack(lambda: llguidance_grammar(guide))
    except ImportError:  # an executor without llguidance, or with an older one, rejects invalid guides itself
        _log.info(
            "llguidance is missing or too old; the %s is not validated before it reaches the executor", _noun(guide)
        )
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
    references, left = set(), [schema]
    while left:  # not recursive: a schema may be nested deeper than Python's recursion limit
        part: Any = left.pop()
        if isinstance(part, dict):
            if isinstance(target := part.get("$ref"), str):
                references.add(target)
            left += part.values()
        elif isinstance(part, list):
            left += part
    return references


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


def llguidance_grammar(guide: Guide) -> str:
    """Returns the guide as an llguidance grammar.

    Raises PipelineError (400) if it can't be converted, and ImportError if this llguidance is too old for its type.
    """
    from llguidance import LLMatcher

    text = guide.source or ""
    if guide.type in (GuideType.JSON, GuideType.JSON_SCHEMA):
        schema = _ANY_JSON if guide.type is GuideType.JSON else text
        try:
            grammar: str = LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_STYLE)
        except ValueError as error:
            raise _bad(f"The JSON schema can't be used: {_first_line(str(error))}") from None
    elif guide.type is GuideType.REGEX:
        from llguidance import regex_to_lark

        # Without use_ascii, \\d would match the digits of every script.
        grammar = LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(text, use_ascii='d')}/")
    else:
        from llguidance.gbnf_to_lark import any_to_lark

        try:
            grammar = LLMatcher.grammar_from_lark(any_to_lark(text))
        except Exception as error:  # the parser, written in Python, raises any type
            raise _bad("The grammar is neither GBNF (`root ::= ...`) nor Lark (`start: ...`).") from error
    return grammar


class GuideCompiler:
    """Creates matchers for one tokenizer. `vocab_size` is the length of the logits; `end_id` ends a guided text.

    Created at the first guided request, because it takes about 0.4 s and 40 MB for a vocabulary of 50,000.
    """

    def __init__(self, tokenizer_file: Path, *, vocab_size: int, end_id: int) -> None:
        from llguidance import LLTokenizer

        self._tokenizer = LLTokenizer(tokenizer_file.read_text(encoding="utf-8"), n_vocab=vocab_size, eos_token=end_id)
        self._vocab_size = vocab_size

    def compile(self, guide: Guide) -> ConstraintMatcher:
        """Returns a matcher at the start of the guide. Raises GuideError if the guide exceeds a limit of llguidance."""
        from llguidance import LLMatcher

        matcher = call_with_large_stack(lambda: LLMatcher(self._tokenizer, llguidance_grammar(guide), log_level=0))
        if matcher.is_error():
            raise GuideError(_first_line(matcher.get_error()))
        return ConstraintMatcher(matcher, self._vocab_size)


class ConstraintMatcher:
    """Matches the tokens of one text against its guide."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def copy(self) -> ConstraintMatcher:
        """Returns another text under the same guide, as far as this one is."""
        return ConstraintMatcher(self._matcher.deep_copy(), self._vocab_size)

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Returns the tokens that may come next, as bool[vocab_size]; the end token is among them if the text may end.

        Raises GuideError if a token that was not allowed has been added, or a limit of llguidance is exceeded.
        """
        bits = np.frombuffer(self._mask(self._matcher), dtype=np.uint8)
        return np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)

    def advance(self, token_ids: Sequence[int]) -> None:
        """Adds tokens to the text. A token that is not allowed makes the next mask raise GuideError."""
        if token_ids:
            self._matcher.consume_tokens(list(token_ids))

    def masks(self, draft: Sequence[int] = (), is_late: Callable[[], bool] = lambda: False) -> list[bytes]:
        """Returns the mask of the next token, and of the one after each draft token, one bit for each token id.

        Ends at a draft token that is not allowed, and before a row if `is_late` returns True. The text stays as it is.
        Raises GuideError as `allowed` does.
        """
        matcher = self._matcher
        rows = [self._mask(matcher)]
        consumed = 0
        for token_id in draft:
            if is_late() or matcher.is_stopped() or not matcher.try_consume_tokens([token_id]):
                break
            consumed += 1
            # A mask made at the end of the text is final: the matcher could not be rolled back.
            rows.append(self._mask(matcher.deep_copy() if matcher.is_stopped() else matcher))
        if consumed and not matcher.rollback(consumed):
            raise GuideError(_first_line(matcher.get_error()))
        return rows

    def _mask(self, matcher: Any) -> bytes:
        bits = matcher.compute_bitmask()
        if matcher.is_error():
            raise GuideError(_first_line(matcher.get_error()))
        return pack_row(bits, mask_bytes(self._vocab_size))
