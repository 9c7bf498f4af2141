"""The ways in which models write calls of functions: one row for each, for the parser, the guides and the choice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

AUTOMATIC = "auto"
_CALLS = "tool_calls"
_ARGUMENTS = "arguments"


@dataclass(frozen=True)
class ToolFormat:
    """How one family of models writes calls.

    `start` precedes a call, or all calls of a format that is a list; where it is empty, an answer that begins with the
    JSON of a call is one. `named_by` ends the name where only the arguments are JSON. `in_template` are parts of a chat
    template, all of which mean this format. `is_in_prompt` is False if templates of the family do not describe tools,
    so that a system message has to. With `has_short_ids`, templates accept ids of nine letters and digits only.
    """

    name: str
    start: str
    end: str
    separator: str  # between calls
    arguments_key: str = _ARGUMENTS
    is_list: bool = False
    named_by: str = ""
    in_template: tuple[str, ...] = ()
    is_in_prompt: bool = True
    has_short_ids: bool = False

    def before_arguments(self, name: str) -> str:
        """What a model writes in a call before the arguments, `start` not included."""
        if self.named_by:
            return f"{name}{self.named_by}"
        space = "\n" if self.start and not self.is_list else ""
        return f'{space}{{"name": "{name}", "{self.arguments_key}": '

    @property
    def after_arguments(self) -> str:
        """What a model writes after the arguments, `end` included."""
        if self.named_by:
            return self.end
        return "}" + (f"\n{self.end}" if self.end else "")


# In the order of recognition: the more specific first.
FORMATS = (
    ToolFormat("hermes", "<tool_call>", "</tool_call>", "\n", in_template=("<tool_call>",)),
    ToolFormat(
        "mistral_args",
        "[TOOL_CALLS]",
        "",
        "",
        named_by="[ARGS]",
        in_template=("[TOOL_CALLS]", "[ARGS]"),
        has_short_ids=True,
    ),
    ToolFormat("mistral", "[TOOL_CALLS]", "", ", ", is_list=True, in_template=("[TOOL_CALLS]",), has_short_ids=True),
    ToolFormat("llama3", "", "", "; ", arguments_key="parameters", in_template=('"parameters": dictionary',)),
    ToolFormat("generic", "", "", "\n", is_in_prompt=False),
)
FORMAT_NAMES = tuple(tool_format.name for tool_format in FORMATS)
_GENERIC = FORMATS[-1]


def format_of(templates: Iterable[str], setting: str = AUTOMATIC) -> ToolFormat:
    """The format of a model with these chat templates, or the one that a setting names."""
    if setting != AUTOMATIC:
        return next(tool_format for tool_format in FORMATS if tool_format.name == setting)
    source = "\n".join(templates)
    if "tools" not in source and _CALLS not in source:
        return _GENERIC
    for tool_format in FORMATS:
        if tool_format.in_template and all(part in source for part in tool_format.in_template):
            return tool_format
    return _GENERIC
