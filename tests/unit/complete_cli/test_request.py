"""Prompt and request fields from the command line."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from complete_cli.request import UsageError, parse_fields, read_prompt, request_body


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("piped", "prompt"),
    [
        (b"Once\n", "Once"),
        (b"Once\n\n", "Once\n"),
        (b"Once", "Once"),
        (b" a\r\n", " a"),
        ("é\n".encode(), "é"),
        (b"", ""),
    ],
)
@pytest.mark.parametrize("word", [None, "-"])
def test_one_line_break_is_removed_from_standard_input(word: str | None, piped: bytes, prompt: str) -> None:
    assert read_prompt(word, None, io.BytesIO(piped)) == prompt


def test_argument_is_unchanged() -> None:
    assert read_prompt("Once\n", None, io.BytesIO(b"piped")) == "Once\n"


def test_prompt_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_text("Once upon\n", encoding="utf-8")
    assert read_prompt(None, path, Terminal()) == "Once upon"


@pytest.mark.parametrize(
    ("word", "file", "stdin", "message"),
    [
        (None, None, Terminal(), "Give a prompt"),
        ("Hi", Path("story.txt"), Terminal(), "not both"),
        (None, Path("/no/such/file"), Terminal(), "cannot be read"),
        (None, None, io.BytesIO(b"\xff"), "not UTF-8"),
    ],
)
def test_invalid_prompt_is_rejected(word: str | None, file: Path | None, stdin: io.BytesIO, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_prompt(word, file, stdin)


def test_fields_are_json_or_strings() -> None:
    items = ["logprobs=5", 'stop=["a", "b"]', "echo=true", "user=me", "suffix=", "x=a=b", "seed=null"]
    assert parse_fields(items) == {
        "logprobs": 5,
        "stop": ["a", "b"],
        "echo": True,
        "user": "me",
        "suffix": "",
        "x": "a=b",
        "seed": None,
    }


@pytest.mark.parametrize("item", ["logprobs", "=5"])
def test_field_without_name_or_value_is_rejected(item: str) -> None:
    with pytest.raises(UsageError, match="name=value"):
        parse_fields([item])


def test_usage_is_requested_for_a_stream_only() -> None:
    """The server rejects stream_options without stream."""
    usage = {"include_usage": True}
    assert request_body({"prompt": "Hi"}, {}, {}, stream=True) == {
        "prompt": "Hi",
        "stream": True,
        "stream_options": usage,
    }
    assert request_body({"prompt": "Hi"}, {}, {}, stream=False) == {"prompt": "Hi", "stream": False}
    assert request_body({"prompt": "Hi"}, {}, {"stream": False}, stream=True) == {"prompt": "Hi", "stream": False}
    assert request_body({"prompt": "Hi"}, {}, {"stream": True}, stream=False)["stream_options"] == usage


def test_fields_override_options_and_unset_options_are_omitted() -> None:
    body = request_body({"prompt": "Hi"}, {"seed": 1, "n": None}, {"seed": 2, "stream_options": None}, stream=True)
    assert body == {"prompt": "Hi", "stream": True, "stream_options": None, "seed": 2}
