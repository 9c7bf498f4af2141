"""A deployment's own chat template replaces the engine's, and must be one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from frontend.models.chat_template_file import read_chat_template, with_chat_template
from llm_pipeline.protocol.capabilities import CAPABILITIES
from llm_pipeline.protocol.model_info import ChatFormat, ModelInfo
from llm_pipeline.runtime.deployment import DeployedModel
from llm_pipeline.runtime.deployment_errors import DeploymentError

CHAT = ChatFormat((("default", "a"), ("tool_use", "b")), "<s>", "</s>", ("<s>",), (), "00")
INFO = ModelInfo(64, 1000, 16, False, CAPABILITIES["cpu"], CHAT)


def test_the_file_replaces_all_templates_and_keeps_the_tokens() -> None:
    chat = with_chat_template(INFO, "mine").chat
    assert chat is not None
    assert (chat.templates, chat.bos_token, chat.special_tokens) == ((("default", "mine"),), "<s>", ("<s>",))
    assert chat.template_sha256 != CHAT.template_sha256


def test_a_model_without_templates_has_no_chat_until_a_file_gives_one() -> None:
    bare = replace(INFO, chat=replace(CHAT, templates=()))
    assert with_chat_template(bare, None).chat is None
    assert with_chat_template(bare, "mine").chat is not None


def test_an_engine_of_an_earlier_release_has_no_chat() -> None:
    """Its special tokens are unknown, so that a client's text could not be kept apart from them."""
    assert with_chat_template(replace(INFO, chat=None), "mine").chat is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "cannot be read"), (b"\xff", "not UTF-8"), (b"{% if %}", "is invalid: line 1")],
    ids=["missing", "not UTF-8", "syntax"],
)
def test_a_file_that_is_no_template_stops_the_start(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "chat.jinja"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DeploymentError, match=reason):
        read_chat_template(DeployedModel(name="m", chat_template=path))


def test_a_model_without_a_file_has_the_engines() -> None:
    assert read_chat_template(DeployedModel(name="m")) is None
