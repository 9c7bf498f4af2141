"""`python -m launcher`: runs the whole stack on this machine."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from pydantic import ValidationError
from rich.console import Console

from launcher.local.serve import serve
from launcher.local.stack import Stack
from launcher.settings import StackSettings


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status: 2 for an invalid setting, otherwise that of `serve`."""
    _parser().parse_args(arguments)
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


def _parser() -> argparse.ArgumentParser:
    """Returns a parser without options, whose help lists the settings."""
    settings = "\n".join(
        f"  {name.upper()}={'' if field.default in (None, ()) else field.default}\n      {field.description}"
        for name, field in StackSettings.model_fields.items()
    )
    return argparse.ArgumentParser(
        prog="python -m launcher",
        description="Runs Triton and the front end on this machine until Ctrl-C. Takes no options: its settings are "
        "environment variables.",
        epilog=f"settings and their defaults:\n{settings}\n\nThose of the other programs: docs/settings.md",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


if __name__ == "__main__":
    sys.exit(main())
