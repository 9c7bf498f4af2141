"""The sandbox in which templates run, and the helpers that they expect.

It is that of transformers' `apply_chat_template` (utils/chat_template_utils.py, 5.23): an immutable sandbox with
`trim_blocks`, `lstrip_blocks`, loop controls, `{% generation %}`, `tojson` without HTML escapes, `raise_exception` and
`strftime_now`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

from llm_pipeline.chat_templates.bounds import (
    FILTER_CHECKS,
    METHOD_CHECKS,
    OPERATOR_CHECKS,
    require_numbers,
    require_widths,
)
from llm_pipeline.chat_templates.meter import METER, ChatTemplateError, measure
from llm_pipeline.chat_templates.metering import CONCAT, TICK, Metering, concat, finalize, tick

# They write HTML or random text, or print objects: no template needs them.
_REMOVED_FILTERS = ("pprint", "random", "urlize", "xmlattr")


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        Metering().visit(template)
        template.set_environment(self)
        return template

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        OPERATOR_CHECKS[operator](left, right)
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        # Methods of generators and frames that the base class allows are of no use to a template.
        return super().is_safe_attribute(obj, attr, value) and not attr.startswith("_")

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        owner = getattr(__obj, "__self__", None)
        if type(owner) is str and (check := METHOD_CHECKS.get(__obj.__name__)) is not None:
            check(owner, *args)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        return lambda *args, **kwargs: _BoundedFormatter(self).vformat(value.__self__, args, kwargs)


class _BoundedFormatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        require_widths(format_spec)
        measure(value)
        text = super().format_field(value, format_spec)
        METER.get().write(len(text))
        return str(text)


def _bounded_filter(function: Any, check: Callable[..., None]) -> Any:
    """A filter of the library behind a check of its arguments, which come after the context or environment."""
    kind = getattr(function, "jinja_pass_arg", None)
    if kind is None:

        def plain(value: Any, *args: Any, **kwargs: Any) -> Any:
            check(value, *args, *kwargs.values())
            return function(value, *args, **kwargs)

        return plain

    def with_scope(scope: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        check(value, *args, *kwargs.values())
        return function(scope, value, *args, **kwargs)

    with_scope.jinja_pass_arg = kind  # type: ignore[attr-defined]
    return with_scope


class _Generation(Extension):
    """`{% generation %}` marks the text of the assistant for training, and writes it."""

    tags = {"generation"}  # noqa: RUF012 - the library's declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        scope = nodes.Scope(lineno=parser.stream.current.lineno)
        scope.body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [scope]


class _Namespace(jinja2.utils.Namespace):
    """The namespace of Jinja without attributes whose names begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *others = args
        for name in dict(*others, **kwargs):
            _require_public(name)
        jinja2.utils.Namespace.__init__(self, *others, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_public(name)
        super().__setitem__(name, value)


def _require_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise ChatTemplateError(f"a namespace has no attribute {name!r}")


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """Not the class itself, which would be one more object of Python in the sandbox."""
    return dict(*args, **kwargs)


def _raise_exception(message: Any = "") -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    require_widths(form)
    return datetime.now().strftime(form)


MARKER = "\ufdd0"
"""A noncharacter of Unicode, which no text of a client contains (frontend/chat). `tojson` never escapes it."""


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    measure(value)
    if isinstance(indent, (int, str)):
        require_numbers(indent if isinstance(indent, int) else len(indent), 64)
        indent = min(indent, 64) if isinstance(indent, int) else indent[:64]
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    return _NOT_ASCII.sub(_escaped, text) if ensure_ascii else text


_NOT_ASCII = re.compile(f"[^\x00-\x7f{MARKER}]")


def _escaped(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1]


def make_environment() -> jinja2.Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, loopcontrols],
        optimized=False,  # constants are not computed while compiling, where there is no meter
        finalize=finalize,
        cache_size=0,
    )
    for name, check in FILTER_CHECKS.items():
        environment.filters[name] = _bounded_filter(environment.filters[name], check)
    for name in _REMOVED_FILTERS:
        del environment.filters[name]
    environment.filters |= {"tojson": _tojson, TICK: tick, CONCAT: concat}
    del environment.globals["lipsum"]
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _make_dict,
        "namespace": _Namespace,
    }
    return environment
