"""The ways in which models write calls of functions: one row for each, for the parser, the guides and the choice."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

AUTOMATIC = "auto"
_TOOLS = re.compile(r"\btools\b")
_ARGUMENTS = "arguments"


@dataclass(frozen=True)
class ToolFormat:
    """How one family of models writes calls.

    `start` precedes a call, or all calls of a format that is a list; where it is empty, an answer that begins with the
    JSON of a call is one. `named_by` ends the name where only the arguments are JSON. `in_template` are parts of a chat
    template, all of which mean this format. With `has_short_ids`, templates accept ids of nine letters and digits only.
    """

    name: str
    start: str
    end: str
    separator: str  # between calls
    arguments_key: str = _ARGUMENTS
    is_list: bool = False
    named_by: str = ""
    in_template: tuple[str, ...] = ()
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
    ToolFormat("generic", "", "", "\n"),
)
FORMAT_NAMES = tuple(tool_format.name for tool_format in FORMATS)
_GENERIC = FORMATS[-1]


def format_of(templates: Iterable[str], setting: str = AUTOMATIC) -> ToolFormat:
    """The format of a model with these chat templates, or the one that a setting names."""
    if setting != AUTOMATIC:
        return next(tool_format for tool_format in FORMATS if tool_format.name == setting)
    source = "\n".join(templates)
    for tool_format in FORMATS:
        if tool_format.in_template and all(part in source for part in tool_format.in_template):
            return tool_format
    return _GENERIC


def knows_tools(templates: Iterable[str]) -> bool:
    """Whether templates describe tools to the model. If not, a system message has to (generic_prompt.py)."""
    return any(_TOOLS.search(source) for source in templates)
