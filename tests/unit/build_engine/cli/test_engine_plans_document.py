"""Compares docs/engine-plans.md with the code."""

from __future__ import annotations

import pytest

from build_engine.gpu.planning.parameters import count_parameters
from build_engine.planning.plan_table import DOCUMENT, model_paths, render
from build_engine.pytorch.planning.formats import FORMATS
from build_engine.targets.gpus import GPUS
from tests.support.plan_requests import MODELS
from tests.support.published_figures import PARAMETERS, PYTORCH_PARAMETERS
from tests.support.pytorch_models import MODELS as PYTORCH_MODELS


@pytest.fixture(scope="module")
def document() -> str:
    return DOCUMENT.read_text(encoding="utf-8")


def test_the_tables_are_up_to_date(document: str) -> None:
    """Update them with `python -m build_engine.planning.plan_table`."""
    assert render(document) == document


@pytest.mark.parametrize("model", sorted(PYTORCH_MODELS))
def test_every_target_is_in_every_models_table(document: str, model: str) -> None:
    table = document.split(f"### {model}: ")[1].split("###")[0]
    assert all(f"| {name} |" in table for name in GPUS)


@pytest.mark.parametrize("model", sorted(MODELS))
def test_a_model_that_can_be_compiled_has_the_plans_of_both_runtimes(document: str, model: str) -> None:
    table = document.split(f"### {model}: ")[1].split("###")[0]
    assert "engine: weights, KV" in table
    assert "PyTorch: weights, KV" in table


def test_the_models_of_the_tables_are_of_nine_families() -> None:
    families = {PYTORCH_MODELS[path.name].architecture for path in model_paths()}
    assert len(families) >= 9


def test_every_format_is_in_the_table_of_formats(document: str) -> None:
    table = document.split("### Formats that the PyTorch runtime loads")[1].split("###")[0]
    assert all(f"| {name} |" in table for name in FORMATS)


def test_the_documented_parameter_counts_are_those_of_the_code(document: str) -> None:
    text = document.split("### Against published figures")[1].split("## Plans")[0]
    assert all(f"{count_parameters(MODELS[figure.model]):,}" in text for figure in PARAMETERS)
    assert all(f"{figure.published:,}" in text for figure in PYTORCH_PARAMETERS)
