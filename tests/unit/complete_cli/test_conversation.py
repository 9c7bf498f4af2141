"""The messages and tools of a chat, and their file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from complete_cli.conversation import Conversation, load_conversation, load_tools
from complete_cli.request import UsageError

TOOL = {"type": "function", "function": {"name": "get_weather"}}


def written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@given(st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text()})))
def test_saved_conversation_is_loaded_unchanged(
    tmp_path_factory: pytest.TempPathFactory, messages: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("chat") / "talk.json"
    Conversation(messages, [TOOL]).save(path)
    assert load_conversation(path) == Conversation(messages, [TOOL])


def test_list_of_messages_is_a_conversation_without_tools(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    loaded = load_conversation(written(tmp_path / "talk.json", messages))
    assert loaded == Conversation(messages, [])
    assert loaded.fields() == {"messages": messages}


def test_system_message_is_replaced_and_removed() -> None:
    conversation = Conversation([{"role": "user", "content": "Hi"}])
    conversation.set_system("Be brief.")
    conversation.set_system("Be long.")
    assert conversation.system == "Be long."
    assert [message["role"] for message in conversation.messages] == ["system", "user"]
    conversation.clear()
    assert conversation.messages == [{"role": "system", "content": "Be long."}]
    conversation.set_system("")
    assert conversation.messages == []
    conversation.clear()
    assert conversation.messages == []


def test_one_tool_needs_no_list(tmp_path: Path) -> None:
    assert load_tools(written(tmp_path / "one.json", TOOL)) == [TOOL]
    assert load_tools(written(tmp_path / "two.json", [TOOL, TOOL])) == [TOOL, TOOL]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1", r"is not JSON: .* \(line 1, column 3\)"),
        ("[" * 100_000, "nested too deeply"),
        ({"messages": "Hi"}, "holds no conversation"),
        ({"tools": []}, "holds no conversation"),
        ([1], "holds no conversation"),
        ("7", "holds no conversation"),
        ({"messages": [], "tools": {}, "x": 1}, None),
        ({"messages": [], "tools": "get_weather"}, "holds no tools"),
    ],
)
def test_file_that_holds_no_conversation_is_rejected(tmp_path: Path, content: Any, message: str | None) -> None:
    path = written(tmp_path / "talk.json", content)
    if message is None:
        assert load_conversation(path) == Conversation()
        return
    with pytest.raises(UsageError, match=message):
        load_conversation(path)


def test_missing_and_binary_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        load_conversation(tmp_path / "none.json")
    with pytest.raises(UsageError, match="cannot be written: No such file"):
        Conversation().save(tmp_path / "none" / "talk.json")
    (tmp_path / "binary.json").write_bytes(b'["\xff"]')
    with pytest.raises(UsageError, match="not UTF-8"):
        load_tools(tmp_path / "binary.json")
