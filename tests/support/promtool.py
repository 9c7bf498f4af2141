"""promtool, Prometheus' checker: from the PATH, or from Debian's package, unpacked below .run without installing it."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

_FOLDER = Path(__file__).parents[2] / ".run" / "tools" / "prometheus"
_TIMEOUT_S = 120.0


def lint(page: bytes) -> str:
    """Returns promtool's complaints about a page of metrics; "" without any. Skips the test if there is no promtool."""
    result = subprocess.run(
        [_promtool(), "check", "metrics"], input=page, capture_output=True, timeout=_TIMEOUT_S, check=False
    )
    complaints = (result.stdout + result.stderr).decode()
    assert bool(complaints) == bool(result.returncode), complaints
    return complaints


@cache
def _find() -> Path | str:
    """Returns the program, or the reason why there is none."""
    if installed := shutil.which("promtool"):
        return Path(installed)
    unpacked = _FOLDER / "usr" / "bin" / "promtool"
    if unpacked.exists():
        return unpacked
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return "promtool is not installed, and this is no Debian to take it from (package prometheus)"
    _FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(
            ["apt-get", "download", "prometheus"], cwd=_FOLDER, timeout=_TIMEOUT_S, capture_output=True, check=True
        )
        package = next(_FOLDER.glob("prometheus_*.deb"))
        subprocess.run(["dpkg-deb", "-x", package, _FOLDER], timeout=_TIMEOUT_S, capture_output=True, check=True)
    except (subprocess.SubprocessError, StopIteration) as error:
        return f"promtool is not installed, and its package can't be fetched: {error}"
    return unpacked


def _promtool() -> Path:
    found = _find()
    if isinstance(found, str):
        pytest.skip(found)
    return found
