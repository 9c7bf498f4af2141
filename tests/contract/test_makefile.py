"""`make test` where only some Pythons are at hand. Nothing is run: `make -n` tells what would be."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def planned(*arguments: str) -> str:
    """What `make test` would do without a Python for the clients, and without clients that are installed."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed here")
    # A make that runs the tests hands its own flags and variables down.
    inherited = ("MAKE", "NEED_CLIENTS", "CLIENTS", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(inherited)}
    command = [make, "-n", "test", "CLIENTS_PYTHON=", "CLIENTS=nowhere", *arguments]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return run.stdout


def test_without_a_python_for_them_the_clients_are_skipped_and_that_is_said() -> None:
    said = planned()
    assert 'pytest -m "not clients"' in said
    assert "pytest tests/clients" not in said
    assert "\nThe clients are left out" in said


@pytest.mark.parametrize("argument", ["CLIENTS_PYTHON=python3.11", "NEED_CLIENTS=1"])
def test_with_one_or_when_they_are_needed_they_are_run(argument: str) -> None:
    said = planned(argument)
    assert "pytest tests/clients" in said
    assert "\nThe clients are left out" not in said


def test_ci_needs_them() -> None:
    assert "make test NEED_CLIENTS=1" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
