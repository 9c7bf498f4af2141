"""launcher/check_python.py, which the Makefile runs with any Python, before anything is installed."""

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


def test_this_python_passes_without_output() -> None:
    run = subprocess.run([sys.executable, "-I", SCRIPT], capture_output=True, text=True, timeout=20, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_problem_goes_to_standard_error_with_status_1() -> None:
    code = f"import sys, runpy; sys.version_info = (3, 9, 2); runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert (run.returncode, run.stdout) == (1, "")
    assert "3.9" in run.stderr


def test_script_parses_with_python_3_6() -> None:
    """Old versions have to be rejected with a message instead of a SyntaxError."""
    ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 6))


@pytest.mark.parametrize("version", [(3, 6), (3, 9), (3, 13), (4, 0)], ids=str)
def test_unsupported_python_is_reported_with_the_supported_range(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sys, "version_info", (*version, 0))
        problem = check_python.find_problem()
    assert problem is not None
    assert f"is {version[0]}.{version[1]}." in problem
    assert "3.10, 3.11 or 3.12" in problem
    assert "make serve PYTHON=" in problem


def test_python_without_venv_gets_the_package_name(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_ensurepip(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "ensurepip":
            raise ImportError(name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_ensurepip)
    problem = check_python.find_problem()
    assert problem is not None
    assert f"apt-get install python{sys.version_info[0]}.{sys.version_info[1]}-venv" in problem


def test_python_without_libpython_gets_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(Path, "exists", lambda path: False)
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    problem = check_python.find_problem()
    assert problem is not None
    assert f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0" in problem
    assert "--enable-shared" in problem
