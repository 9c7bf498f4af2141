"""`python -m complete_cli`, and the programs `complete` and `triton-complete`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_EXTRA = {"typer", "httpx", "httpx_sse"}  # the packages of the extra `cli`


def main(arguments: Sequence[str] | None = None, *, program: str = "complete") -> None:
    """Runs the program, and always raises SystemExit.

    If a package of the extra `cli` is missing, exits with status 1 and the install command."""
    try:
        from complete_cli.cli import main as run
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        sys.stderr.write(
            f"error: The package {error.name} is missing, which this program needs. "
            "Install the extra `cli` from a copy of the repository: pip install '.[cli]'\n"
        )
        raise SystemExit(1) from None
    run(arguments, program=program)


if __name__ == "__main__":
    main()
