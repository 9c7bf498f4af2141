"""`python -m complete_cli`, and the programs `complete` and `triton-complete`."""

from __future__ import annotations

import sys


def main() -> None:
    """The program; where the packages that it needs are not installed, what to do about it."""
    try:
        from complete_cli import cli
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "httpx"}:
            raise
        sys.stderr.write(
            f"error: this program needs {error.name}, which the extra `cli` brings: "
            "pip install '.[cli]' in a copy of the repository.\n"
        )
        raise SystemExit(1) from None
    cli.main()


if __name__ == "__main__":
    main()
