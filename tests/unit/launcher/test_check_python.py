"""launcher/check_python.py: run by the Makefile before anything is installed, by whatever Python there is."""

from __future__ import annotations

import ast
import builtins
import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher import check_python

SCRIPT = Path(check_python.__file__)


def test_this_python_passes_without_a_word() -> None:
    run = subprocess.run([sys.executable, "-I", SCRIPT], capture_output=True, text=True, timeout=20, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_a_problem_goes_to_standard_error_with_status_one() -> None:
    code = f"import sys, runpy; sys.version_info = (3, 9, 2); runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert (run.returncode, run.stdout) == (1, "")
    assert "3.9" in run.stderr


def test_pythons_since_3_6_can_read_it() -> None:
    """They are the ones that it has to refuse with a sentence instead of a SyntaxError."""
    ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 6))


@pytest.mark.parametrize("version", [(3, 6), (3, 9), (3, 13), (4, 0)], ids=str)
def test_a_python_outside_the_range_is_named_with_the_range(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sys, "version_info", (*version, 0))
        said = check_python.find_problem()
    assert said is not None
    assert f"is {version[0]}.{version[1]}." in said
    assert "3.10, 3.11 or 3.12" in said
    assert "make serve PYTHON=" in said


def test_a_python_without_venv_is_told_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_ensurepip(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "ensurepip":
            raise ImportError(name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_ensurepip)
    said = check_python.find_problem()
    assert said is not None
    assert f"apt-get install python{sys.version_info[0]}.{sys.version_info[1]}-venv" in said


def test_a_python_without_its_shared_library_is_told_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(check_python.Path, "exists", lambda path: False)
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    said = check_python.find_problem()
    assert said is not None
    assert f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0" in said
    assert "--enable-shared" in said
