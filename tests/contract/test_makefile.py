"""The plan of `make test`, read from `make -n`: scripts, and clients where a Python for them is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def planned(*arguments: str) -> str:
    """The plan of `make test` without a Python for the clients, and without installed clients."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed here")
    # A make that runs the tests passes its own flags and variables on.
    inherited = ("MAKE", "NEED_CLIENTS", "CLIENTS", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(inherited)}
    command = [make, "-n", "test", "CLIENTS_PYTHON=", "CLIENTS=nowhere", *arguments]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return run.stdout


def test_the_scripts_check_and_test() -> None:
    plan = planned()
    assert plan.index("scripts/check") < plan.index("scripts/test")


def test_without_a_python_for_them_the_clients_are_skipped_with_a_message() -> None:
    plan = planned()
    assert "pytest tests/clients" not in plan
    assert "\nThe clients are skipped" in plan


@pytest.mark.parametrize("argument", ["CLIENTS_PYTHON=python3.11", "NEED_CLIENTS=1"])
def test_with_a_python_or_when_they_are_required_the_clients_run(argument: str) -> None:
    plan = planned(argument)
    assert "pytest tests/clients" in plan
    assert "\nThe clients are skipped" not in plan


def test_ci_requires_the_clients() -> None:
    assert "scripts/ci" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make test NEED_CLIENTS=1" in (ROOT / "scripts" / "ci").read_text(encoding="utf-8")


def test_ci_requires_helm_where_it_can_be_downloaded() -> None:
    script = (ROOT / "scripts" / "ci").read_text(encoding="utf-8")
    assert script.index("make deploy-tools") < script.index("export NEED_DEPLOY_TOOLS=1") < script.index("make test")


def test_the_scripts_select_every_test_that_needs_no_gpu_exactly_once() -> None:
    script = (ROOT / "scripts" / "test").read_text(encoding="utf-8")
    assert 'unit="not triton and not clients"' in script
    assert 'integration="triton and not clients"' in script


@pytest.mark.parametrize("name", ["check", "test", "lock", "ci"])
def test_scripts_are_executable_and_valid_bash(name: str) -> None:
    script = ROOT / "scripts" / name
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True, timeout=10)


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs make, as from a shell that no make has started."""
    program = shutil.which("make")
    if program is None:
        pytest.skip("make is not installed here")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        [program, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_help_names_settings_and_the_way_to_serve_a_model_of_ones_own() -> None:
    printed = make().stdout
    assert "make serve MODEL=" in printed
    assert "make serve PORT=" in printed
    assert "docs/settings.md" in printed
    assert "make install " in printed


def test_a_python_that_does_not_exist_is_reported_with_the_remedy(tmp_path: Path) -> None:
    done = make("serve", "PYTHON=/no/such/python", f"VENV={tmp_path}/venv")
    assert done.returncode != 0
    assert done.stdout == (
        "There is no program /no/such/python. Name a Python 3.10, 3.11 or 3.12: make serve PYTHON=python3.11\n"
    )
    assert not (tmp_path / "venv").exists()


def test_serving_prints_no_raw_commands(tmp_path: Path) -> None:
    """Every line of the recipe is silent: the programs print what they do."""
    recipe = make("-n", "serve", f"VENV={tmp_path}/venv").stdout
    commands = [line for line in recipe.splitlines() if line and not line.startswith((" ", "\t"))]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert len(commands) >= 4
    for rule in ("serve: $(VENV)/.serve\n", "$(VENV)/.serve: requirements/serve.lock pyproject.toml\n"):
        lines = makefile.split(rule)[1].split("\n\n")[0].splitlines()
        assert [line for line in lines if line.startswith("\t") and not line.startswith(("\t@", "\t\t"))] == []


def test_serving_hands_the_names_on_makes_command_line_to_the_launcher(tmp_path: Path) -> None:
    assert 'serve --make-flags="$MAKEFLAGS"' in make("-n", "serve", f"VENV={tmp_path}/venv").stdout
