"""The schemas that zod 4.6.7 and zod-to-json-schema 3.25.2 make of zod's types are followed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from llm_pipeline.guides.compilers.llguidance_compiler import GuideCompiler
from llm_pipeline.protocol.messages import Guide, GuideType
from tests.support.random_walks import random_walk

SCHEMAS: dict[str, Any] = json.loads((Path(__file__).parents[4] / "data" / "zod_schemas.json").read_text("utf-8"))
# A random walk finds no end of these: their last characters are fixed.
ENDLESS = ("email", "ends", "includes", "jwt", "starts")


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_of_zod_is_followed(name: str, compiler: GuideCompiler, library: tokenizers.Tokenizer) -> None:
    guide = Guide(GuideType.JSON_SCHEMA, json.dumps(SCHEMAS[name]))
    compiler.compile(guide)
    end = library.token_to_id("<|end|>")
    assert end is not None
    if not name.endswith(ENDLESS):
        for seed in range(3):
            json.loads(random_walk(compiler, library, guide, seed, end))
