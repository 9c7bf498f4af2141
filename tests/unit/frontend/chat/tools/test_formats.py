"""The format of calls is found in the template, and its ids are those that the template accepts."""

from __future__ import annotations

import re

import pytest

from frontend.chat.tools.call_ids import new_call_id
from frontend.chat.tools.formats import FORMAT_NAMES, FORMATS, format_of, knows_tools
from frontend.settings import FrontendSettings


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{% for tool in tools %}{{ tool | tojson }}{% endfor %} within <tool_call></tool_call> tags", "hermes"),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS][{...}]", "mistral"),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}", "mistral_args"),
        ('{% if tools %}{"name": function name, "parameters": dictionary of argument name}{% endif %}', "llama3"),
        ("{% for message in messages %}{{ message.content }}{% endfor %}", "generic"),
    ],
)
def test_a_template_shows_the_format(template: str, name: str) -> None:
    assert format_of([template]).name == name
    assert format_of(["", template]).name == name


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_a_setting_names_the_format(name: str) -> None:
    assert format_of(["<tool_call>"], name).name == name
    assert FrontendSettings(chat_tool_format=name, auth="off").chat_tool_format == name


def test_templates_with_tools_describe_them() -> None:
    assert knows_tools(["", "{% if tools %}"])
    assert not knows_tools(["{{ message.content }}", "{{ toolset }}"])


@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda tool_format: tool_format.name)
def test_ids_of_calls_differ(tool_format: object) -> None:
    ids = {new_call_id(tool_format) for _ in range(1000)}  # type: ignore[arg-type]
    assert len(ids) == 1000
    pattern = r"[a-zA-Z0-9]{9}" if tool_format.has_short_ids else r"call_[a-zA-Z0-9]{24}"  # type: ignore[attr-defined]
    assert all(re.fullmatch(pattern, call_id) for call_id in ids)
