"""Compares the measured coverage of each package with its floor in pyproject.toml; exit status 1 if one is below."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import coverage

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


def floors() -> dict[str, float]:
    """Percent of lines and branches, by package."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    table: dict[str, float] = project["tool"]["triton-completions"]["coverage-floors"]
    return table


def main() -> int:
    measured = coverage.Coverage(config_file=str(ROOT / "pyproject.toml"))
    measured.load()
    is_below = False
    for package, floor in floors().items():
        percent = measured.report(include=[f"{ROOT}/{package}/*"], file=io.StringIO())
        is_below |= percent < floor
        print(f"coverage of {package}: {percent:.1f} % (floor {floor} %){' BELOW' if percent < floor else ''}")
    if is_below:
        print("Add tests, or see the uncovered lines: .venv/bin/coverage report --show-missing", file=sys.stderr)
    return int(is_below)


if __name__ == "__main__":
    sys.exit(main())
