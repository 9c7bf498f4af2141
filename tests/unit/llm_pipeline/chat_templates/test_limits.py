"""A template that does not end, fills the memory or reaches for Python is refused within its limits."""

from __future__ import annotations

import threading
import time

import pytest

from llm_pipeline.chat_templates.compiled import MAX_SOURCE_CHARACTERS, CompiledTemplate
from llm_pipeline.chat_templates.meter import ChatTemplateError, Meter, OverTimeError

MESSAGES = [{"role": "user", "content": "Hello"}]
_DOUBLING = "{{% set ns = namespace(x='ab') %}}{{% for i in range(60) %}}{0}{{% endfor %}}{{{{ ns.x | length }}}}"

_LOOPS = "{{% for i in range(99999) %}}{{% for j in range(99999) %}}{0}{{% endfor %}}{{% endfor %}}"

ENDLESS = {
    "nested loops": _LOOPS.format(""),
    "nested loops with output": _LOOPS.format("{{ '' }}"),
    "loop with a slow test": "{% for i in range(99999) if range(99999) | list | length == 3 %}{% endfor %}",
    "exponential macro": "{% macro a(n) %}{% if n %}{{ a(n - 1) }}{{ a(n - 1) }}{% endif %}{% endmacro %}{{ a(60) }}",
    "recursive loop": "{% for i in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth < 60 }}{% endfor %}",
}
LARGE = {
    "doubling with ~": _DOUBLING.format("{% set ns.x = ns.x ~ ns.x %}"),
    "doubling with +": _DOUBLING.format("{% set ns.x = ns.x + ns.x %}"),
    "doubling a list": _DOUBLING.format("{% set ns.x = (ns.x | list) + (ns.x | list) %}"),
    "doubling a block": _DOUBLING.format("{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"),
    "doubling with join": _DOUBLING.format("{% set ns.x = [ns.x, ns.x] | join %}"),
    "repetition": "{{ 'x' * 10**10 }}",
    "repetition of a list": "{{ ([1] * 10**10) | length }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "product": "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "percent format": "{{ '%0999999999d' % 1 }}",
    "percent format, width as argument": "{{ '%*d' % (999999999, 1) }}",
    "format method": "{{ '{:>999999999}'.format(1) }}",
    "format method, nested width": "{{ '{:{w}}'.format(1, w=999999999) }}",
    "format filter": "{{ '%999999999d' | format(1) }}",
    "center filter": "{{ 'x' | center(10**9) }}",
    "indent filter": "{{ 'a\\n' | indent(10**9) }}",
    "tojson indent": "{{ messages | tojson(indent=10**9) }}",
    "ljust": "{{ 'x'.ljust(10**9) }}",
    "zfill": "{{ 'x'.zfill(10**9) }}",
    "expandtabs": "{{ '\\t'.expandtabs(10**9) }}",
    "replace": "{% set a = 'x' * 10**6 %}{{ a.replace('', a) }}",
    "replace filter": "{% set a = 'x' * 10**6 %}{{ a | replace('x', a) }}",
    "join method": "{% set a = 'x' * 10**6 %}{{ a.join(range(99999) | list) }}",
    "output": "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
}
FORBIDDEN = {
    "class": "{{ ''.__class__.__mro__ }}",
    "class in a format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "class in format_map": "{{ '{x.__class__.__mro__}'.format_map({'x': 1}) }}",
    "globals of a global": "{{ cycler.__init__.__globals__ }}",
    "changing a message": "{% set _ = messages.append(1) %}",
    "changing an object": "{% set _ = messages[0].update({'role': 'x'}) %}",
    "files": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "hidden attribute": "{% set ns = namespace(_x=1) %}",
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "random text": "{{ lipsum(10**6) }}",
    "translate": "{{ 'a'.translate({97: 'b'}) }}",
    "endless recursion": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "its own refusal": "{{ raise_exception('no tools') }}",
}
INVALID = {
    "syntax": "{% for %}",
    "unclosed": "{% if x %}",
    "unknown filter": "{{ x | urlize }}",
    "deep": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "large": "x" * (MAX_SOURCE_CHARACTERS + 1),
}


def _started(limit_s: float) -> Meter:
    meter = Meter(limit_s)
    meter.start()
    return meter


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_a_template_that_does_not_end_is_stopped(source: str) -> None:
    template = CompiledTemplate(source)
    with pytest.raises(OverTimeError, match=r"longer than 0\.05 s"):
        template.render({"messages": MESSAGES}, meter=_started(0.05))


@pytest.mark.parametrize("source", LARGE.values(), ids=LARGE)
def test_a_template_that_fills_the_memory_is_refused(source: str) -> None:
    with pytest.raises(ChatTemplateError, match="makes more than"):
        CompiledTemplate(source).render({"messages": MESSAGES}, meter=_started(60))


@pytest.mark.parametrize("writing", ["{{ ns.x | tojson }}", "{{ ns.x }}", "{{ ns.x ~ '' }}"], ids=["json", "text", "~"])
def test_a_small_list_with_a_huge_text_is_not_written(writing: str) -> None:
    nesting = "{% set ns = namespace(x=['a']) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
    with pytest.raises(ChatTemplateError):
        CompiledTemplate(nesting + writing).render({}, meter=_started(0.2))


@pytest.mark.parametrize("source", FORBIDDEN.values(), ids=FORBIDDEN)
def test_a_template_reaches_nothing_outside(source: str) -> None:
    with pytest.raises(ChatTemplateError):
        CompiledTemplate(source).render({"messages": [dict(message) for message in MESSAGES]})


@pytest.mark.parametrize(
    "source",
    ["{{ messages | attr('__class__') }}", "{{ raise_exception.__globals__ }}", "{{ self.__init__ }}"],
    ids=["attr", "globals", "self"],
)
def test_hidden_attributes_are_undefined(source: str) -> None:
    assert CompiledTemplate(source).render({"messages": MESSAGES}) == ""


@pytest.mark.parametrize("source", INVALID.values(), ids=INVALID)
def test_an_invalid_template_is_refused_with_a_reason(source: str) -> None:
    with pytest.raises(ChatTemplateError, match=r"line 1: |more than|does not compile"):
        CompiledTemplate(source)


def test_the_reason_of_a_refusal_is_the_templates() -> None:
    with pytest.raises(ChatTemplateError, match=r"^no tools$"):
        CompiledTemplate("{{ raise_exception('no tools') }}").render({})


def test_a_rendering_can_be_cancelled_from_another_thread() -> None:
    meter = Meter(60, pauses=True)
    meter.start()
    timer = threading.Timer(0.05, meter.cancel)
    timer.start()
    with pytest.raises(OverTimeError):
        CompiledTemplate(ENDLESS["nested loops"]).render({}, meter=meter)
    timer.join()


def test_a_rendering_with_pauses_leaves_half_of_the_time() -> None:
    meter = Meter(0.1, pauses=True)
    meter.start()
    started_s, started_work_s = time.monotonic(), time.thread_time()
    with pytest.raises(OverTimeError):
        CompiledTemplate(ENDLESS["nested loops"]).render({}, meter=meter)
    work_s = time.thread_time() - started_work_s
    assert work_s >= 0.09
    assert time.monotonic() - started_s >= 1.8 * work_s


def test_json_for_ascii_only_clients_keeps_the_marker() -> None:
    render = CompiledTemplate("{{ x | tojson(ensure_ascii=True) }}").render
    assert render({"x": "é🙂\ufdd0\\ufdd0"}) == '"\\u00e9\\ud83d\\ude42\ufdd0\\\\ufdd0"'
