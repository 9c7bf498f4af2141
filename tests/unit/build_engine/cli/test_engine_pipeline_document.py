"""Compares docs/engine-pipeline.md with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from build_engine.cli.inspect import INCOMPLETE_STATUS
from build_engine.cpu.architectures import ARCHITECTURES
from build_engine.fleet.file import read_fleet_file
from build_engine.gpu.verification.accuracy import THRESHOLDS
from llm_pipeline.engine_files.manifest import EngineManifest, GpuBuild, PyTorchModel

DOCUMENT = Path(__file__).parents[4] / "docs" / "engine-pipeline.md"


@pytest.fixture(scope="module")
def document() -> str:
    return DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize("precision", THRESHOLDS)
def test_the_documented_thresholds_are_those_of_the_code(document: str, precision: str) -> None:
    rows = re.findall(r"^\| ([^|]+) \| ([\d.]+) \| ([\d.]+) \|$", document, re.MULTILINE)
    found = {name: (float(least), float(most)) for names, least, most in rows for name in names.split(", ")}
    wanted = THRESHOLDS[precision]
    assert found[precision] == (wanted.min_agreement, wanted.max_perplexity_ratio)


@pytest.mark.parametrize("model", [EngineManifest, GpuBuild, PyTorchModel])
def test_every_field_of_the_manifest_is_named(document: str, model: type[BaseModel]) -> None:
    text = document.split("## Manifest")[1].split("## Verify")[0]
    assert [name for name in model.model_fields if f"`{name}`" not in text and name != "format_version"] == []


def test_the_documented_fleet_file_is_valid(document: str, tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(document.split("```toml\n")[1].split("```")[0])
    assert len(read_fleet_file(path)) == 2 * 2 + 2 + 2 + 1


def test_the_documented_status_of_an_incomplete_check_is_that_of_the_code(document: str) -> None:
    assert f"the status is {INCOMPLETE_STATUS}" in document


def test_the_documented_models_for_cpus_are_those_of_the_code(document: str) -> None:
    text = document.split("## Models for CPUs")[1].split("## Storage")[0]
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", text, re.MULTILINE)
    assert rows == [(architecture.class_name, architecture.name) for architecture in ARCHITECTURES]
