"""`python -m launcher`: runs the whole stack on this machine."""

from __future__ import annotations

import logging
import sys

from pydantic import ValidationError
from rich.console import Console

from launcher.local.serve import serve
from launcher.local.stack import Stack
from launcher.settings import StackSettings


def main() -> int:
    """Runs the program and returns its exit status: 2 for an invalid setting, otherwise that of `serve`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    console = Console()
    try:
        settings = StackSettings()
    except ValidationError as error:
        for problem in error.errors():
            name = "_".join(str(part) for part in problem["loc"]).upper()
            console.print(f"[bold red]Not started.[/] Invalid value of {name}: {problem['msg']}.", highlight=False)
        return 2
    return serve(Stack(settings, console), console)


if __name__ == "__main__":
    sys.exit(main())
