"""`python -m launcher`, `triton-completions serve` and `make serve`: runs the whole stack on this machine."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from pydantic import ValidationError
from rich.console import Console

from launcher.local.serve import print_not_started, serve
from launcher.local.stack import Stack
from launcher.setting_names import known_settings, misspelt_settings, unknown_make_variables, unknown_message
from launcher.setting_problems import setting_problems
from launcher.settings import StackSettings


def main(arguments: Sequence[str] | None = None, *, program: str = "python -m launcher") -> int:
    """Runs the program and returns its exit status: 2 for an invalid setting, otherwise that of `serve`.

    Settings on the command line become environment variables, which the processes of the stack read too.
    """
    parser = _parser(program)
    values = _read_arguments(parser, arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    console = Console()
    for name, setting in misspelt_settings(os.environ).items():
        console.print(f"[yellow]•[/] The environment has {name}, which has no effect. Did you mean {setting}?")
    os.environ.update(values)
    try:
        settings = StackSettings()
    except ValidationError as error:
        print_not_started(console, "\n".join(setting_problems(StackSettings, error)))
        return 2
    return serve(Stack(settings, console), console)


def _read_arguments(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> dict[str, str]:
    """Returns the settings on the command line. Exits with status 2 for one that does not exist."""
    options, unknown = parser.parse_known_args(arguments)
    for option in unknown:
        name = option.partition("=")[0].lstrip("-").replace("-", "_").upper()
        parser.error(unknown_message(name) if option.startswith("--") else f"unexpected argument {option}")
    values = {name: value for name, value in vars(options).items() if name.isupper() and value is not None}
    for item in options.assignments:
        name, equals, value = item.partition("=")
        if not equals:
            parser.error(f"unexpected argument {item}: settings are written as PORT=9001 or --port 9001")
        if name not in known_settings():
            parser.error(unknown_message(name))
        values[name] = value
    for name in unknown_make_variables(options.make_flags):
        parser.error(unknown_message(name))
    return values


def _parser(program: str) -> argparse.ArgumentParser:
    """Returns a parser with an option for each setting; help lists those of the launcher."""
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"{program} [--version] [--SETTING VALUE | SETTING=VALUE] ...",
        description="Serves a model: runs Triton and the front end on this machine until Ctrl-C. Without settings, "
        "the default model on the CPU. Each setting is also an environment variable of its name in capitals.",
        epilog="Those of the front end and of Triton's models are options too: docs/settings.md lists them. Prefer the "
        "environment for keys: other users can read the command line.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"triton-completions {version('triton-completions')}")
    parser.add_argument("--make-flags", default="", help=argparse.SUPPRESS)  # MAKEFLAGS of `make serve`
    parser.add_argument("assignments", nargs="*", metavar="SETTING=VALUE", help=argparse.SUPPRESS)
    own = {name.upper(): field for name, field in StackSettings.model_fields.items()}
    for name in [*own, *sorted(known_settings() - own.keys())]:
        text = argparse.SUPPRESS
        if name in own:
            default = own[name].default
            text = f"{own[name].description}{'' if default in (None, ()) else f'. Default: {default}'}".replace(
                "%", "%%"
            )
        parser.add_argument(f"--{name.lower().replace('_', '-')}", dest=name, metavar="VALUE", help=text)
    return parser


if __name__ == "__main__":
    sys.exit(main())
