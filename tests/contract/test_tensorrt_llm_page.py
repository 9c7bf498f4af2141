"""docs/tensorrt-llm.md: its tables are those of the code."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from build_engine.gpu.planning.model_config import ARCHITECTURES
from llm_pipeline.protocol.capabilities import CAPABILITIES, PYTORCH_CAPABILITIES
from llm_pipeline.protocol.executor_names import ExecutorName
from scripts.capability_tables import PAGE, PROFILES, main, page_with_table
from scripts.prove_on_gpu.runner import STEPS

TEXT = PAGE.read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """Returns the cells of the first table below a heading, without its header."""
    section = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_capability_table_is_current() -> None:
    assert main(["--check"]) == 0, "run: python -m scripts.capability_tables"


def test_capability_table_has_every_profile_of_tensorrt_llm() -> None:
    shown = list(PROFILES.values())
    assert CAPABILITIES["tensorrt_llm"] in shown
    assert all(profile in shown for profile in PYTORCH_CAPABILITIES.values())


def test_another_table_in_the_page_is_noticed() -> None:
    changed = TEXT.replace("| `min_tokens` | yes |", "| `min_tokens` | 400 |")
    assert changed != TEXT
    assert page_with_table(changed) == TEXT


def test_page_names_the_executors_of_both_runtimes() -> None:
    named = {cell.strip("`") for cell in rows("Which runtime")[0][1:]}
    assert named == {name for name in get_args(ExecutorName) if name.startswith("tensorrt_llm")}


def test_page_names_every_architecture_of_engines() -> None:
    (line,) = [cells for cells in rows("Which runtime") if cells[0] == "models"]
    assert {f"{name}ForCausalLM" for name in re.findall(r"`(\w+)`", line[1])} == set(ARCHITECTURES)


def test_page_has_every_step_of_prove_on_gpu_and_what_it_needs() -> None:
    listed = {
        name: needs == "yes" for names, needs, _ in rows("What to run first on a GPU") for name in names.split(", ")
    }
    assert listed == {f"`{step.name}`": step.needs_tensorrt_llm for step in STEPS}


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:tests|scripts|llm_pipeline|build_engine)/[\w/.-]+)`", TEXT)))
)
def test_files_that_the_page_names_exist(path: str) -> None:
    assert list(PAGE.parents[1].glob(path))
