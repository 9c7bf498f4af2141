"""Compiles and renders the Jinja template of a model in a sandbox, in bounded time and output. Alone imports jinja2.

The environment is that of transformers' `apply_chat_template` (utils/chat_template_utils.py, 5.23): an immutable
sandbox, `trim_blocks`, `lstrip_blocks`, loop controls, `{% generation %}`, `tojson` without HTML escapes,
`raise_exception` and `strftime_now`. The same messages therefore give the same text.

A template comes with a model from a public hub. The sandbox keeps it from objects of Python. Against one that does not
end or fills the memory, each pass of a loop and each call of a macro passes a meter, which is compiled into the
template, and so does every value that is written; operators and methods that make a long value from a short one check
the result's length first.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment, SandboxedFormatter
from jinja2.visitor import NodeTransformer

MIB = 1 << 20
MAX_SOURCE_CHARACTERS = MIB
MAX_CHARACTERS = 8 * MIB  # of the prompt, and of any value that a template computes
_MAX_ITEMS = MIB  # of a list, and of all values within one that is written
_MAX_INTEGER_BITS = 4096
_MAX_WRITTEN = 4 * MAX_CHARACTERS  # with text that a template captures and writes again
LIMIT_S = 2.0
_HOLD_S = 0.002  # between two pauses


class ChatTemplateError(Exception):
    """The template can't be used, or refuses the messages. The message gives the cause."""


class OverTimeError(ChatTemplateError):
    """Rendering took longer than its limit."""


class Meter:
    """The time and the output of one rendering.

    With `pauses`, the thread sleeps after each 2 ms for as long as it has run: a rendering in a thread takes at most half
    of the interpreter's time. The limit is then of the thread's own work, without pauses and waits.
    """

    def __init__(self, limit_s: float, *, pauses: bool = False) -> None:
        self._limit_s = limit_s
        self._work_left_s = limit_s
        self._slice_s = _HOLD_S if pauses else limit_s
        self._since_s = self._since_work_s = self._due_s = 0.0
        self._written = 0

    def start(self) -> None:
        """Starts the clock, in the thread that renders."""
        self._since_s = time.monotonic()
        self._since_work_s = time.thread_time()
        self._due_s = self._since_s + min(self._slice_s, self._work_left_s)

    def tick(self) -> None:
        """Raises OverTimeError beyond the time limit."""
        now_s = time.monotonic()
        if now_s < self._due_s:
            return
        self._work_left_s -= time.thread_time() - self._since_work_s
        if self._work_left_s <= 0 or self._slice_s == self._limit_s:
            raise OverTimeError(f"it took longer than {self._limit_s:g} s")
        time.sleep(now_s - self._since_s)
        self.start()

    def cancel(self) -> None:
        """Ends the rendering, which may be in another thread, with OverTimeError."""
        self._work_left_s = self._due_s = -math.inf

    def write(self, characters: int) -> None:
        """Raises ChatTemplateError beyond the limit of output."""
        self._written += characters
        if self._written > _MAX_WRITTEN:
            raise _too_large()
        self.tick()


_METER: ContextVar[Meter] = ContextVar("chat_template_meter")


class CompiledTemplate:
    """One template. It may be rendered by several threads at once."""

    def __init__(self, source: str) -> None:
        """Raises ChatTemplateError if the source is not a template."""
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise ChatTemplateError(f"it has more than {MAX_SOURCE_CHARACTERS} characters")
        try:
            self._template = _ENVIRONMENT.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ChatTemplateError(f"line {error.lineno}: {error.message}") from error
        except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError, MemoryError) as error:
            raise ChatTemplateError(f"it does not compile: {type(error).__name__}") from error

    def render(self, variables: Mapping[str, Any], *, meter: Meter | None = None) -> str:
        """Returns the text. `variables` have JSON values only. `meter` has started.

        Raises ChatTemplateError if the template refuses the variables, fails, or exceeds a limit.
        """
        if meter is None:
            meter = Meter(LIMIT_S)
            meter.start()
        token = _METER.set(meter)
        parts: list[str] = []
        length = 0
        try:
            for part in self._template.generate(variables):
                parts.append(part)
                length += len(part)
                if length > MAX_CHARACTERS:
                    raise _too_large()
                meter.tick()
        except ChatTemplateError:
            raise
        except jinja2.TemplateError as error:  # raise_exception too
            raise ChatTemplateError(error.message or type(error).__name__) from error
        except RecursionError as error:
            raise ChatTemplateError("it calls itself too often") from error
        except MemoryError as error:
            raise _too_large() from error
        except Exception as error:  # a template is a program: it may fail in any way
            raise ChatTemplateError(f"{type(error).__name__}: {error}") from error
        finally:
            _METER.reset(token)
        return "".join(parts)


def _too_large() -> ChatTemplateError:
    return ChatTemplateError(f"it makes more than {MAX_CHARACTERS} characters")


# --- The meter in the template ---------------------------------------------------------------------------------------

_TICK, _CONCAT = "__tick", "__concat"


class _Metering(NodeTransformer):
    """Adds the meter to every body that a template may run more than once, and bounds `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - the library's names
        self.generic_visit(node)
        if node.test is not None:
            node.test = _metered(node.test)
        return _with_tick(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return _with_tick(self.generic_visit(node))

    visit_CallBlock = visit_Macro  # noqa: N815
    visit_Block = visit_Macro  # noqa: N815

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        parts = nodes.Tuple(node.nodes, "load", lineno=node.lineno)
        return nodes.Filter(parts, _CONCAT, [], [], None, None, lineno=node.lineno)


def _metered(value: nodes.Expr) -> nodes.Expr:
    return nodes.Filter(value, _TICK, [], [], None, None, lineno=value.lineno)


def _with_tick(node: Any) -> nodes.Node:
    tick = nodes.ExprStmt(_metered(nodes.Const(None, lineno=node.lineno)), lineno=node.lineno)
    node.body.insert(0, tick)
    result: nodes.Node = node
    return result


def _tick(value: Any) -> Any:
    _METER.get().tick()
    return value


def _concat(values: Iterable[Any]) -> str:
    texts = [value if type(value) is str else _text_of(value) for value in values]
    _require_length(sum(map(len, texts)))
    return "".join(texts)


def _text_of(value: Any) -> str:
    _measure(value)
    return str(value)


@jinja2.pass_context
def _finalize(context: Any, value: Any) -> Any:  # pass_context keeps the compiler from calling it for constants
    _METER.get().write(len(value) if type(value) is str else _measure(value))
    return value


def _measure(value: Any) -> int:
    """Returns the characters of all strings in a value. Raises ChatTemplateError for more than the limits.

    A list that contains another twice, which contains a third twice, is small in memory and huge as a text.
    """
    if type(value) is str:
        return len(value)
    if not isinstance(value, (dict, list, tuple)):
        return 0
    waiting, items, characters = [value], 0, 0
    meter = _METER.get()
    while waiting:
        meter.tick()
        container = waiting.pop()
        members: Iterable[Any] = (*container, *container.values()) if isinstance(container, dict) else container
        items += len(container)
        for member in members:
            if type(member) is str:
                characters += len(member)
            elif isinstance(member, (dict, list, tuple)):
                waiting.append(member)
        if items > _MAX_ITEMS or characters > MAX_CHARACTERS:
            raise _too_large()
    return characters


def _require_length(length: int) -> None:
    if length > MAX_CHARACTERS:
        raise _too_large()


# --- Operators, methods and filters that can make much of little ------------------------------------------------------


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        _Metering().visit(template)
        template.set_environment(self)
        return template

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _BINOP_CHECKS[operator](left, right)
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        # Methods of generators and frames that the base class allows are of no use to a template.
        return super().is_safe_attribute(obj, attr, value) and not attr.startswith("_")

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        owner = getattr(__obj, "__self__", None)
        if type(owner) is str and (check := _METHOD_CHECKS.get(__obj.__name__)) is not None:
            check(owner, *args)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        return lambda *args, **kwargs: _BoundedFormatter(self).vformat(value.__self__, args, kwargs)


class _BoundedFormatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        _require_widths(format_spec)
        _measure(value)
        text = super().format_field(value, format_spec)
        _METER.get().write(len(text))
        return str(text)


def _check_plus(left: Any, right: Any) -> None:
    if isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
        _require_length(len(left) + len(right))


def _check_times(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > _MAX_INTEGER_BITS:
            raise _too_large()
    elif isinstance(right, int) and isinstance(left, (str, list, tuple)):
        _require_length(len(left) * max(right, 0))
    elif isinstance(left, int) and isinstance(right, (str, list, tuple)):
        _require_length(len(right) * max(left, 0))


def _check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * max(right, 0) > _MAX_INTEGER_BITS:
        raise _too_large()


def _check_percent(left: Any, right: Any) -> None:
    if isinstance(left, str):
        _require_widths(left)
        arguments = right if isinstance(right, tuple) else (right,)
        if "*" in left:
            _require_numbers(*arguments)
        written = _measure(right) if isinstance(right, (dict, list, tuple)) else _measure([right])
        _require_length(len(left) + left.count("%") * written)


_BINOP_CHECKS: dict[str, Callable[[Any, Any], None]] = {
    "+": _check_plus,
    "*": _check_times,
    "**": _check_power,
    "%": _check_percent,
}


def _require_widths(form: str) -> None:
    """Checks the widths and precisions in a format."""
    _require_numbers(*(int(digits[:20]) for digits in re.findall(r"\d+", form)))


def _require_numbers(*values: Any) -> None:
    for value in values:
        if isinstance(value, (int, float)):
            _require_length(int(min(abs(value), MAX_CHARACTERS + 1)))


def _check_width(owner: str, width: Any = 0, *_: Any) -> None:
    _require_numbers(width)
    if isinstance(width, int):
        _require_length(len(owner) + owner.count("\t") * abs(width))


def _check_replace(owner: str, old: Any = "", new: Any = "", *_: Any) -> None:
    if isinstance(old, str) and isinstance(new, str) and len(new) > len(old):
        _require_length(len(owner) + owner.count(old) * (len(new) - len(old)))


def _check_join(owner: str, values: Any = (), *_: Any) -> None:
    if isinstance(values, (str, list, tuple, dict)):
        _require_length(_measure(list(values)) + len(owner) * len(values))


def _check_translate(owner: str, table: Any = (), *_: Any) -> None:
    raise ChatTemplateError("str.translate is not supported in a template")


_METHOD_CHECKS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(("ljust", "rjust", "center", "zfill", "expandtabs"), _check_width),
    "replace": _check_replace,
    "join": _check_join,
    "translate": _check_translate,
}


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


def _check_format_filter(value: Any, *args: Any) -> None:
    _check_percent(value, args)


def _check_numbers(value: Any, *args: Any) -> None:
    _require_numbers(*args)


def _check_indent(value: Any, width: Any = 4, *args: Any) -> None:
    _require_numbers(width)
    step = width if isinstance(width, int) else _measure(width)
    text = value if isinstance(value, str) else ""
    _require_length(len(text) + (text.count("\n") + 1) * step)


def _check_replace_filter(value: Any, old: Any = "", new: Any = "", *_: Any) -> None:
    _check_replace(value if isinstance(value, str) else "", old, new)


def _check_join_filter(value: Any, separator: Any = "", *_: Any) -> None:
    if isinstance(value, (list, tuple, dict)) and isinstance(separator, str):
        _check_join(separator, value)


_FILTER_CHECKS: dict[str, Callable[..., None]] = {
    "batch": _check_numbers,
    "center": _check_numbers,
    "format": _check_format_filter,
    "indent": _check_indent,
    "join": _check_join_filter,
    "replace": _check_replace_filter,
    "round": _check_numbers,
    "slice": _check_numbers,
    "wordwrap": _check_numbers,
}
# They write HTML or random text, or print objects: no template needs them.
_REMOVED_FILTERS = ("pprint", "random", "urlize", "xmlattr")

# --- The helpers that templates expect -------------------------------------------------------------------------------


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


def _raise_exception(message: Any = "") -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    _require_widths(form)
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
    _measure(value)
    if isinstance(indent, (int, str)):
        _require_numbers(indent if isinstance(indent, int) else len(indent), 64)
        indent = min(indent, 64) if isinstance(indent, int) else indent[:64]
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    return _NOT_ASCII.sub(_escaped, text) if ensure_ascii else text


_NOT_ASCII = re.compile(f"[^\x00-\x7f{MARKER}]")


def _escaped(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1]


def _make_environment() -> SandboxedEnvironment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, loopcontrols],
        optimized=False,  # constants are not computed while compiling, where there is no meter
        finalize=_finalize,
        cache_size=0,
    )
    for name, check in _FILTER_CHECKS.items():
        environment.filters[name] = _bounded_filter(environment.filters[name], check)
    for name in _REMOVED_FILTERS:
        del environment.filters[name]
    environment.filters |= {"tojson": _tojson, _TICK: _tick, _CONCAT: _concat}
    del environment.globals["lipsum"]
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
        "namespace": _Namespace,
    }
    return environment


_ENVIRONMENT = _make_environment()
