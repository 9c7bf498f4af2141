"""promtool, Prometheus' checker."""

from __future__ import annotations

import subprocess

from tests.support.prometheus import program

_TIMEOUT_S = 120.0


def promtool(*arguments: object, page: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Runs it. Skips the test without one."""
    command = [str(program("promtool")), *map(str, arguments)]
    return subprocess.run(command, input=page, capture_output=True, timeout=_TIMEOUT_S, check=False)


def lint(page: bytes) -> str:
    """Returns promtool's complaints about a page of metrics; "" without any. Skips the test if there is no promtool."""
    result = promtool("check", "metrics", page=page)
    complaints = (result.stdout + result.stderr).decode()
    assert bool(complaints) == bool(result.returncode), complaints
    return complaints
