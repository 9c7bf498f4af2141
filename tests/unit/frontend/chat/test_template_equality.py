"""Prompts of chat templates equal those of transformers: the text, and the token ids with two kinds of tokenizers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from frontend.chat.template import ChatTemplate, RenderedPrompt
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.model_info import ChatFormat
from llm_pipeline.text.tokenizer import Tokenizer
from tests.support.chat_template_cases import (
    BOS,
    CONVERSATIONS,
    EOS,
    EXPECTED,
    TOKENIZERS,
    added_tokens,
    sha256_of_ids,
    template_paths,
)

PROMPTS: dict[str, dict[str, Any]] = json.loads(EXPECTED.read_text(encoding="utf-8"))["prompts"]
SOURCES = {path.stem: path.read_bytes().decode() for path in template_paths()}


def test_there_are_twenty_families_and_few_refusals() -> None:
    """A comparison of refusals alone would show nothing."""
    assert set(PROMPTS) == set(SOURCES)
    assert len(PROMPTS) >= 20
    for name, prompts in PROMPTS.items():
        assert sum(prompt is not None for prompt in prompts.values()) >= 5, name


@pytest.mark.parametrize("family", SOURCES)
def test_prompts_are_those_of_transformers(family: str) -> None:
    special, others = added_tokens(SOURCES[family])
    template = ChatTemplate(
        ChatFormat((("default", SOURCES[family]),), BOS, EOS, tuple(special), tuple(others), template_sha256="")
    )
    tokenizers = {name: Tokenizer(make(SOURCES[family])) for name, make in TOKENIZERS.items()}
    for name, expected in PROMPTS[family].items():
        prompt = _prompt(template, name)
        if expected is None:
            assert prompt is None, name
            continue
        assert prompt is not None, name
        assert prompt.text == expected["text"], name
        assert prompt.plain_spans == (), name
        for kind, tokenizer in tokenizers.items():
            ids = tokenizer.encode(prompt.text, add_special_tokens=False)
            assert sha256_of_ids(ids) == expected[kind], (name, kind)


def _prompt(template: ChatTemplate, name: str) -> RenderedPrompt | None:
    conversation = CONVERSATIONS[name]
    try:
        return template.render(
            conversation.messages,
            tools=conversation.tools,
            documents=conversation.documents,
            add_generation_prompt=conversation.add_generation_prompt,
            continue_final_message=conversation.continue_final_message,
            extra=conversation.extra,
        )
    except PipelineError:
        return None
