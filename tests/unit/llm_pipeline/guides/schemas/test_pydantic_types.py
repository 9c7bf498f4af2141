"""The schemas of Pydantic's types are followed: what the class accepts is in the table of docs/structured-output.md."""

from __future__ import annotations

import json
from contextlib import suppress

import pydantic
import pytest
import tokenizers

from llm_pipeline.guides.compilers.llguidance_compiler import GuideCompiler
from llm_pipeline.protocol.messages import Guide, GuideType
from tests.support.pydantic_types import ROWS, Outcome, Row
from tests.support.random_walks import random_walk

WALKS = 15
WALKS_TO_A_REFUSAL = 150


@pytest.mark.parametrize("row", [row for row in ROWS if row.outcome is not Outcome.NO_SCHEMA], ids=lambda row: row.name)
def test_the_schema_of_a_type_is_followed_as_the_table_has_it(
    row: Row, compiler: GuideCompiler, library: tokenizers.Tokenizer
) -> None:
    adapter: pydantic.TypeAdapter[object] = pydantic.TypeAdapter(row.type)
    guide = Guide(GuideType.JSON_SCHEMA, json.dumps(adapter.json_schema()))
    end = library.token_to_id("<|end|>")
    assert end is not None
    if row.outcome is Outcome.ACCEPTED:
        for seed in range(WALKS):
            adapter.validate_json(random_walk(compiler, library, guide, seed, end))
        return
    for seed in range(WALKS_TO_A_REFUSAL):
        with suppress(AssertionError):  # a long text
            text = random_walk(compiler, library, guide, seed, end)
            json.loads(text)
            try:
                adapter.validate_json(text)
            except (pydantic.ValidationError, ImportError):
                return
    pytest.fail("the class accepts every text: the table has it wrong")


@pytest.mark.parametrize("row", [row for row in ROWS if row.outcome is Outcome.NO_SCHEMA], ids=lambda row: row.name)
def test_a_type_without_a_schema_stays_without_one(row: Row) -> None:
    with pytest.raises(pydantic.errors.PydanticInvalidForJsonSchema):
        pydantic.TypeAdapter(row.type).json_schema()
