"""Compiles the meter into a template: every body that may run more than once passes it, and every value written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from llm_pipeline.chat_templates.meter import METER, measure, require_length

TICK, CONCAT = "__tick", "__concat"


class Metering(NodeTransformer):
    """Adds the meter to every body that a template may run more than once, and bounds `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - the library's names
        self.generic_visit(node)
        if isinstance(node.test, nodes.Expr):
            node.test = _metered(node.test)
        return _with_tick(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return _with_tick(self.generic_visit(node))

    visit_CallBlock = visit_Macro  # noqa: N815
    visit_Block = visit_Macro  # noqa: N815

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        parts = nodes.Tuple(node.nodes, "load", lineno=node.lineno)
        return nodes.Filter(parts, CONCAT, [], [], None, None, lineno=node.lineno)


def _metered(value: nodes.Expr) -> nodes.Expr:
    return nodes.Filter(value, TICK, [], [], None, None, lineno=value.lineno)


def _with_tick(node: Any) -> nodes.Node:
    tick = nodes.ExprStmt(_metered(nodes.Const(None, lineno=node.lineno)), lineno=node.lineno)
    node.body.insert(0, tick)
    result: nodes.Node = node
    return result


def tick(value: Any) -> Any:
    METER.get().tick()
    return value


def concat(values: Iterable[Any]) -> str:
    texts = [value if type(value) is str else _text_of(value) for value in values]
    require_length(sum(map(len, texts)))
    return "".join(texts)


def _text_of(value: Any) -> str:
    measure(value)
    return str(value)


@jinja2.pass_context
def finalize(context: Any, value: Any) -> Any:  # pass_context keeps the compiler from calling it for constants
    METER.get().write(len(value) if type(value) is str else measure(value))
    return value
