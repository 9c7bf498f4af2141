"""Compiles guides with llguidance, and matches texts against them. The only module that imports llguidance.

What it does with a hostile guide has no limits: it runs in a guide's own process, which has them (guide_process.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_pipeline.guides.compilers.llguidance_problems import (
    expression_problem,
    grammar_problem,
    located,
    mask_problem,
)
from llm_pipeline.guides.compilers.structural_tags import StructuralTagGrammar
from llm_pipeline.guides.mask_server import pack_row
from llm_pipeline.guides.masks import GuideError, mask_bytes
from llm_pipeline.guides.schemas.keywords import Schema, paths_of
from llm_pipeline.guides.schemas.normalise import normalised, parse
from llm_pipeline.guides.schemas.refusals import sentence
from llm_pipeline.protocol.messages import Guide, GuideType

if TYPE_CHECKING:
    from llguidance import LLMatcher
    from llguidance._lib import JsonCompileOptions

_ANY_JSON = "{}"
# The style of json.dumps. With flexible white space, a small model may write blanks up to max_tokens.
_JSON_STYLE: JsonCompileOptions = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}


# Without it, text that a guide forces is written with the tokenizer's special tokens, which are not text.
# At the end, so that the lines of errors are the client's.
_NO_FORCING = '\n%llguidance {"no_forcing": true}\n'


def _schema_rule(schema: Schema) -> str:
    # An unpaired surrogate stays an escape, and numbers that JSON lacks have been refused.
    try:
        text = json.dumps({**schema, "x-guidance": _JSON_STYLE}, separators=(",", ":"))
    except RecursionError:
        raise GuideError("It is nested too deeply.") from None
    return f"%json {text}"


def _schema_grammar(schema: Schema) -> str:
    return f"start: {_schema_rule(schema)}{_NO_FORCING}"


def _regex_rule(pattern: str) -> str:
    from llguidance import regex_to_lark

    # Without use_ascii, \\d would match the digits of every script.
    return f"/{regex_to_lark(pattern, use_ascii='d')}/"


def _tag_rule_of_schema(schema: Any, place: str) -> str:
    """The rule of a schema in a structural tag. Raises GuideError with its place."""
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise GuideError(f"{place}.json_schema must be an object.")
    try:
        return _schema_rule(normalised(schema).document)
    except GuideError as error:
        raise GuideError(f"In {place}: {error}") from None


def _tag_grammar(text: str, special_tokens: Mapping[str, int]) -> str:
    return StructuralTagGrammar(special_tokens, _tag_rule_of_schema, _regex_rule).lark(text) + _NO_FORCING


def _other_grammar(guide: Guide) -> str:
    """Returns the Lark grammar of a guide without a schema. Raises GuideError, and ImportError as `validate` does."""
    text = guide.source or ""
    if guide.type is GuideType.REGEX:
        return f"start: {_regex_rule(text)}{_NO_FORCING}"
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return str(any_to_lark(text)) + _NO_FORCING
    except Exception as error:  # the parser, written in Python, raises any type
        raise GuideError("It is neither GBNF (`root ::= ...`) nor Lark (`start: ...`).") from error


def _problem_of(guide: Guide, message: str) -> str:
    explain = expression_problem if guide.type is GuideType.REGEX else grammar_problem
    return sentence(explain(message))


def validate(guide: Guide) -> None:
    """Raises GuideError if the guide is invalid, and ImportError if this llguidance is too old for its type.

    Needs no tokenizer. Checks the guide as it is: its executor compiles it again.
    """
    from llguidance import LLMatcher

    if guide.type is GuideType.STRUCTURAL_TAG:
        if problem := LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(_tag_grammar(guide.source or "", {}))):
            raise GuideError(_problem_of(guide, problem))
        return
    if guide.type not in (GuideType.JSON, GuideType.JSON_SCHEMA):
        if problem := LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(_other_grammar(guide))):
            raise GuideError(_problem_of(guide, problem))
        return

    def problem_of(part: Schema) -> str:
        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(part), overrides=_JSON_STYLE)
        except ValueError as error:
            return str(error)
        return LLMatcher.validate_grammar(grammar)

    schema = parse(guide.source or _ANY_JSON)
    normalised(schema)  # for its checks
    if problem_of(schema):
        raise GuideError(sentence(located(schema, paths_of(schema), problem_of)))


def _readable(tokenizer_json: str) -> str:
    """Returns the tokenizer with a decoder that llguidance knows.

    It knows SentencePiece's by the steps of Llama's, and refuses the same in one step, as Unigram tokenizers have it
    (toktrie_hf_tokenizers/src/lib.rs at c75b0d90, `ByteTokenizer::from_tokenizer`).
    """
    document = json.loads(tokenizer_json)
    decoder = document.get("decoder")
    if not isinstance(decoder, dict) or decoder.get("type") != "Metaspace":
        return tokenizer_json
    space = {"type": "Replace", "pattern": {"String": decoder.get("replacement", "\u2581")}, "content": " "}
    steps = [space, {"type": "ByteFallback"}, {"type": "Fuse"}]
    return json.dumps({**document, "decoder": {"type": "Sequence", "decoders": steps}})


def _special_tokens(tokenizer_json: str) -> dict[str, int]:
    """Ids of the special tokens by their text. llguidance never writes their text as that of other tokens."""
    added = json.loads(tokenizer_json).get("added_tokens") or ()
    return {token["content"]: token["id"] for token in added if token.get("special") and token["content"]}


class GuideCompiler:
    """Creates matchers for one tokenizer. `vocab_size` is the length of the logits; `end_id` ends a guided text.

    Takes about 0.3 s and 40 MB for a vocabulary of 50,000.
    """

    def __init__(self, tokenizer_file: Path, *, vocab_size: int, end_id: int) -> None:
        from llguidance import LLTokenizer

        text = tokenizer_file.read_text(encoding="utf-8")
        self._special_tokens = _special_tokens(text)
        text = _readable(text)
        self._tokenizer = LLTokenizer(text, n_vocab=vocab_size, eos_token=end_id)
        self._vocab_size = vocab_size

    def compile(self, guide: Guide) -> ConstraintMatcher:
        """Returns a matcher at the start of the guide. Raises GuideError if the guide is invalid or beyond a limit.

        llguidance recurses to the depth of the guide: the caller's stack must be large.
        """
        if guide.type in (GuideType.JSON, GuideType.JSON_SCHEMA):
            matcher = self._schema_matcher(guide.source or _ANY_JSON)
        else:
            is_tag = guide.type is GuideType.STRUCTURAL_TAG
            source = guide.source or ""
            matcher = self._matcher(_tag_grammar(source, self._special_tokens) if is_tag else _other_grammar(guide))
            if matcher.is_error():
                raise GuideError(_problem_of(guide, matcher.get_error()))
        return ConstraintMatcher(matcher, self._vocab_size)

    def _schema_matcher(self, text: str) -> LLMatcher:
        schema = normalised(parse(text))
        matcher = self._matcher(_schema_grammar(schema.document))
        if matcher.is_error():

            def problem_of(part: Schema) -> str:
                part_matcher = self._matcher(_schema_grammar(part))
                return part_matcher.get_error() if part_matcher.is_error() else ""

            raise GuideError(sentence(located(schema.document, schema.origins, problem_of)))
        return matcher

    def _matcher(self, grammar: str) -> LLMatcher:
        from llguidance import LLMatcher

        return LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0)


class ConstraintMatcher:
    """Matches the tokens of one text against its guide."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def copy(self) -> ConstraintMatcher:
        """Returns another text under the same guide, as far as this one is."""
        return ConstraintMatcher(self._matcher.deep_copy(), self._vocab_size)

    def advance(self, token_ids: Sequence[int]) -> None:
        """Adds tokens to the text. A token that is not allowed makes the next mask raise GuideError."""
        if token_ids:
            self._matcher.consume_tokens(list(token_ids))

    def masks(self, draft: Sequence[int] = (), is_late: Callable[[], bool] = lambda: False) -> list[bytes]:
        """Returns the mask of the next token, and of the one after each draft token, one bit for each token id.

        Ends at a draft token that is not allowed, and before a row if `is_late` returns True. The text stays as it is.
        The end token is allowed if the text may end.

        Raises GuideError if a token that was not allowed has been added, or a limit of llguidance is exceeded.
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
            raise GuideError(sentence(mask_problem(matcher.get_error())))
        return rows

    def _mask(self, matcher: Any) -> bytes:
        bits = matcher.compute_bitmask()
        if matcher.is_error():
            raise GuideError(sentence(mask_problem(matcher.get_error())))
        return pack_row(bits, mask_bytes(self._vocab_size))
