"""The comparison of an installed package with the stored signatures."""

from __future__ import annotations

import enum
import sys
from types import ModuleType
from typing import Any

import pytest

from scripts.prove_on_gpu.signatures import compare_symbol, of_release, parameter_names, stored, used_words

PARAMETERS = [{"name": "top_k"}, {"name": "top_p"}, {"name": "gone"}]


class Python:
    def __init__(self, top_k: int, *, top_p: float, fresh: int = 0) -> None: ...

    def abort(self, timeout: float) -> None: ...


class Bound:
    def __init__(self) -> None:
        """__init__(self, top_k: int | None = None, *, top_p: float = 1.0, fresh: int) -> None"""


class Reason(enum.Enum):
    STOP = 0
    FRESH = 1


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    package, module = ModuleType("tensorrt_llm"), ModuleType("tensorrt_llm.some")
    vars(package).update(some=module)
    vars(module).update(Python=Python, Bound=Bound, Reason=Reason)
    monkeypatch.setitem(sys.modules, "tensorrt_llm", package)
    monkeypatch.setitem(sys.modules, "tensorrt_llm.some", module)


@pytest.mark.usefixtures("installed")
class TestComparison:
    @pytest.mark.parametrize("name", ["Python", "Bound"])
    def test_parameters_that_are_missing_and_new_are_listed(self, name: str) -> None:
        found = compare_symbol(f"tensorrt_llm.some.{name}", {"kind": "class", "params": PARAMETERS}, {"gone"})
        assert (found["missing"], found["missing_used"], found["new"]) == (["gone"], ["gone"], ["fresh"])

    def test_what_nothing_here_uses_is_no_loss(self) -> None:
        found = compare_symbol("tensorrt_llm.some.Python", {"kind": "class", "params": PARAMETERS}, {"top_k"})
        assert (found["missing"], found["missing_used"]) == (["gone"], [])

    def test_methods_and_their_parameters_are_compared(self) -> None:
        methods: dict[str, Any] = {"abort": {"params": [{"name": "now"}]}, "pause": {"params": []}}
        facts = {"kind": "class", "methods": methods}
        found = compare_symbol("tensorrt_llm.some.Python", facts, {"pause"})
        assert found["missing"] == ["pause", "abort: now"]
        assert found["missing_used"] == ["pause"]

    def test_members_of_an_enum_are_compared(self) -> None:
        facts = {"kind": "enum", "values": ["STOP", "LENGTH"]}
        found = compare_symbol("tensorrt_llm.some.Reason", facts, {"LENGTH"})
        assert (found["missing"], found["new"]) == (["LENGTH"], ["FRESH"])

    @pytest.mark.parametrize("name", ["tensorrt_llm.some.Gone", "tensorrt_llm.gone.Class", "tensorrt_llm.Gone"])
    def test_a_symbol_that_is_gone_is_missing(self, name: str) -> None:
        assert compare_symbol(name, {"kind": "class", "params": []}, set())["is_missing"] is True


def test_parameters_of_a_callable_that_takes_anything_are_unknown() -> None:
    assert parameter_names(lambda **keywords: keywords) is None
    assert parameter_names(lambda *values: values) is None


def test_stored_symbols_are_those_of_the_stand_ins() -> None:
    names = {name for _, symbols in stored("1.2.1") for name, _ in symbols}
    assert {"tensorrt_llm.bindings.executor.Request", "tensorrt_llm.LLM"} <= names


@pytest.mark.parametrize(
    ("version", "values"), [("1.1.0", None), ("1.2.1", ["A"]), ("1.3.0rc26", ["B"]), ("1.4.0rc1", ["B"])]
)
def test_facts_are_those_of_the_newest_release_line_that_is_not_newer(version: str, values: list[str] | None) -> None:
    facts = {"kind": "enum", "releases": {"1.2": {"values": ["A"]}, "1.3": {"values": ["B"]}}}
    found = of_release(facts, version)
    assert (None if found is None else found["values"]) == values


def test_used_words_are_those_of_the_modules_that_import_tensorrt_llm() -> None:
    words = used_words()
    assert {"Request", "ExecutorConfig", "embedding_bias", "quantize_and_export"} <= words
    assert "LookaheadDecodingConfig" not in words
