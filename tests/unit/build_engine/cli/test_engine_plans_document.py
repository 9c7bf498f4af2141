"""Compares docs/engine-plans.md with the code."""

from __future__ import annotations

import pytest

from build_engine.gpu.planning.parameters import count_parameters
from build_engine.planning.plan_table import DOCUMENT, render
from build_engine.targets.gpus import GPUS
from tests.support.plan_requests import MODELS
from tests.support.published_figures import PARAMETERS


@pytest.fixture(scope="module")
def document() -> str:
    return DOCUMENT.read_text(encoding="utf-8")


def test_the_tables_are_up_to_date(document: str) -> None:
    """Update them with `python -m build_engine.planning.plan_table`."""
    assert render(document) == document


@pytest.mark.parametrize("model", MODELS)
def test_every_target_is_in_every_models_table(document: str, model: str) -> None:
    table = document.split(f"### {model}: ")[1].split("###")[0]
    assert all(f"| {name} |" in table for name in GPUS)


def test_the_documented_parameter_counts_are_those_of_the_code(document: str) -> None:
    text = document.split("### Against published figures")[1].split("## Plans")[0]
    assert all(f"{count_parameters(MODELS[figure.model]):,}" in text for figure in PARAMETERS)
