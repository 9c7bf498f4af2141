"""docs/models.md: its example is a valid deployment file, and its table names every key."""

from __future__ import annotations

import re
from pathlib import Path

from llm_pipeline.runtime.deployment import DeployedModel, Deployment, ModelKind, ModelLimits, SamplingDefaults

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = DOCS / "examples" / "deployment.toml"
PAGE = (DOCS / "models.md").read_text(encoding="utf-8")


def test_example_is_a_valid_deployment() -> None:
    models = Deployment.load(EXAMPLE).models
    assert [model.name for model in models if model.is_local] == ["smollm2-135m-instruct", "load-test"]
    assert {model.kind for model in models} == set(ModelKind)
    assert models[-1].parent == models[-2].name


def test_page_shows_the_example_file() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert example == EXAMPLE.read_text(encoding="utf-8")


def test_page_names_every_key() -> None:
    keys = [*DeployedModel.model_fields, *ModelLimits.model_fields, *SamplingDefaults.model_fields]
    assert not [key for key in keys if f"`{key}`" not in PAGE]
