"""The wheel contains what runs, with its type information and licence; the lock files and floors cover each package."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.wheel import WheelBuilder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS: list[str] = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
PACKAGES = [folder for folder in FOLDERS if folder != "model_repository"]  # which Triton reads, not Python


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")))
    return set(zipfile.ZipFile(path).namelist())


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_is_marked_as_typed(wheel_files: set[str], package: str) -> None:
    assert f"{package}/py.typed" in wheel_files


@pytest.mark.parametrize("package", FOLDERS)
def test_the_wheel_contains_every_file_of_a_package(wheel_files: set[str], package: str) -> None:
    """Data files too: the playground, reference tokens, fleet examples, Triton's models."""
    files = {path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path.relative_to(ROOT).as_posix() for path in files} - wheel_files == set()


def test_the_wheel_contains_the_licence(wheel_files: set[str]) -> None:
    assert [name for name in wheel_files if re.fullmatch(r".*\.dist-info/licenses/LICENSE", name)]
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_wheel_contains_no_tests_and_benchmarks(wheel_files: set[str]) -> None:
    assert [name for name in wheel_files if name.startswith(("tests/", "benchmarks/"))] == []


def test_the_wheel_contains_no_compiled_files(wheel_files: set[str]) -> None:
    """Triton takes every directory in the model repository for a model."""
    assert [name for name in wheel_files if "__pycache__" in name] == []


def test_the_extra_of_a_machine_without_a_gpu_installs_all_that_serving_needs() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert extras["cpu"][0] == "triton-completions[build,cli,frontend]"


def test_each_package_has_a_coverage_floor() -> None:
    assert set(PROJECT["tool"]["triton-completions"]["coverage-floors"]) == {*PACKAGES, "benchmarks"}
