"""The limit of connections follows from the limit of open files, in processes of their own."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import resource, sys
from frontend.transport.descriptors import connection_limit
soft, hard, configured = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(connection_limit(configured or None), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def limits(soft: int, hard: int, configured: int = 0) -> tuple[str, str]:
    """The number of connections and the soft limit after it, and the last line of the error output."""
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(soft), str(hard), str(configured)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return result.stdout.splitlines()[-1] if result.stdout else "", (result.stderr.splitlines() or [""])[-1]


def test_soft_limit_is_raised_as_far_as_needed() -> None:
    assert limits(256, 4096, 100)[0] == "100 2468"  # 256 others, 64 for probes, 2,048 that wait in the kernel


def test_default_is_what_the_hard_limit_allows() -> None:
    assert limits(256, 4096)[0] == "3776 4096"


def test_configured_number_beyond_the_hard_limit_is_an_error() -> None:
    output, error = limits(256, 4096, 4000)
    assert output == ""
    assert "MAX_CONNECTIONS=4000 needs 4320 open files, and this process may have 4096 (ulimit -Hn)" in error
