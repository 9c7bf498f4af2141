"""Chat templates of a model: their places in a directory, their trial, and the files of an engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from build_engine.artifact.chat_templates import ChatTemplates, read_chat_templates, tried
from build_engine.errors import EngineRefusedError

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TOOLS = "{{ tools }}"


def _write(directory: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return directory


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ()),
        ({"tokenizer_config.json": {"chat_template": CHATML}}, (("default", CHATML),)),
        ({"tokenizer_config.json": {"chat_template": None}}, ()),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [{"name": "tool_use", "template": TOOLS}, {"name": "default", "template": CHATML}]
                }
            },
            (("default", CHATML), ("tool_use", TOOLS)),
        ),
        ({"chat_template.jinja": CHATML, "tokenizer_config.json": {"chat_template": TOOLS}}, (("default", CHATML),)),
        (
            {"chat_template.jinja": CHATML, "additional_chat_templates/rag.jinja": TOOLS},
            (("default", CHATML), ("rag", TOOLS)),
        ),
        ({"chat_template.json": {"chat_template": CHATML}}, (("default", CHATML),)),
        (
            {"chat_template.json": {"chat_template": {"default": CHATML, "rag": TOOLS}}},
            (("default", CHATML), ("rag", TOOLS)),
        ),
        ({"chat_template.jinja": "", "tokenizer_config.json": {"chat_template": CHATML}}, (("default", CHATML),)),
    ],
    ids=["none", "config", "null", "list", "file first", "named file", "processor", "processor's names", "empty file"],
)
def test_templates_are_found_with_the_precedence_of_transformers(
    tmp_path: Path, files: dict[str, Any], expected: tuple[tuple[str, str], ...]
) -> None:
    assert read_chat_templates(_write(tmp_path, files)).templates == expected


def test_tokens_are_spelled_as_the_configuration_has_them(tmp_path: Path) -> None:
    config = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "chat_template": CHATML}
    chat = read_chat_templates(_write(tmp_path, {"tokenizer_config.json": config}))
    assert (chat.bos_token, chat.eos_token) == ("<s>", "</s>")
    map_only = read_chat_templates(_write(tmp_path / "old", {"special_tokens_map.json": {"bos_token": "<b>"}}))
    assert (map_only.bos_token, map_only.eos_token) == ("<b>", "")


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe{", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"],
    ids=["not UTF-8", "Git LFS pointer"],
)
def test_a_file_that_is_no_template_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(content)
    with pytest.raises(EngineRefusedError, match=r"chat_template\.jinja is "):
        read_chat_templates(tmp_path)


def test_an_invalid_template_is_left_out_with_a_note() -> None:
    notes: list[str] = []
    chat = tried(ChatTemplates((("default", "{% for %}"), ("rag", CHATML))), notes.append)
    assert chat.templates == (("rag", CHATML),)
    assert notes == [
        "The model's chat template is left out, because it is invalid (line 1: Expected an expression, got 'end of "
        "statement block'). Chat needs a file with a template then: see CHAT_TEMPLATE."
    ]


def test_a_template_that_refuses_a_conversation_is_kept_with_a_note() -> None:
    notes: list[str] = []
    template = (("default", "{{ raise_exception('Only one message.') }}"),)
    assert tried(ChatTemplates(template), notes.append).templates == template
    assert notes[0].endswith("with an answer between them: Only one message.")


@pytest.mark.parametrize("name", ["../x", "a b", "", "x" * 65])
def test_a_name_that_is_no_file_name_is_left_out(name: str) -> None:
    notes: list[str] = []
    assert tried(ChatTemplates(((name, CHATML),)), notes.append).templates == ()
    assert len(notes) == 1


def test_the_files_of_an_engine_have_the_sources_byte_for_byte(tmp_path: Path) -> None:
    chat = ChatTemplates((("default", "a\r\nb"), ("rag", CHATML)), bos_token="<s>")
    assert chat.write(tmp_path) == ["chat_template.jinja", "chat_template.rag.jinja", "chat_tokens.json"]
    assert (tmp_path / "chat_template.jinja").read_bytes() == b"a\r\nb"
    assert json.loads((tmp_path / "chat_tokens.json").read_bytes()) == {"bos_token": "<s>", "eos_token": ""}
    assert ChatTemplates().write(tmp_path / "none") == []
