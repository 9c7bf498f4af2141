"""`triton-completions`, and `python -m triton_completions`: picks the program for a subcommand.

Each extra of the package installs the libraries of some programs, so a program is imported when it is chosen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

PROGRAM = "triton-completions"
_HELP = f"""usage: {PROGRAM} COMMAND [OPTIONS]

OpenAI-compatible text completions served by NVIDIA Triton.

  serve                 run the server on this machine: `{PROGRAM} serve --model my-model.gguf`
  complete              complete a prompt with a server: `{PROGRAM} complete "Once upon a time"`
  keys                  add, list, revoke and rotate API keys: `{PROGRAM} keys add my-team`
  usage                 print what keys have used, as CSV
  build                 build an engine from a model
  plan, fleet, inspect, verify, targets
                        the other commands of engines: `python -m build_engine --help`

  {PROGRAM} COMMAND --help lists the options of a command, {PROGRAM} --version prints the version.
"""
_ENGINE_COMMANDS = ("build", "plan", "fleet", "inspect", "verify", "targets")
_USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status: 2 for an unknown command, 1 if its packages are missing."""
    command, *options = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if command in ("-h", "--help", "help"):
        sys.stdout.write(_HELP)
        return 0
    if command == "--version":
        sys.stdout.write(f"{PROGRAM} {version(PROGRAM)}\n")
        return 0
    program = _PROGRAMS.get(command)
    if program is None:
        commands = ", ".join(_PROGRAMS)
        sys.stderr.write(f"error: {command} is not a command of {PROGRAM}. Choose one of {commands}.\n")
        return _USAGE_ERROR
    try:
        return program(command, options)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in _OWN_PACKAGES:
            raise
        sys.stderr.write(
            f"error: `{PROGRAM} {command}` needs the package {error.name}, which is not installed. "
            f"Install {PROGRAM} with the extra `cpu`: pip install '{PROGRAM}[cpu]'\n"
        )
        return 1


def _serve(command: str, options: Sequence[str]) -> int:
    from launcher.__main__ import main as serve

    return serve(options, program=f"{PROGRAM} {command}")


def _complete(command: str, options: Sequence[str]) -> int:
    from complete_cli.__main__ import main as complete

    complete(options, program=f"{PROGRAM} {command}")
    return 0


def _keys(command: str, options: Sequence[str]) -> int:
    from triton_completions.keys import main as keys

    return keys(options, program=f"{PROGRAM} {command}")


def _usage(command: str, options: Sequence[str]) -> int:
    from triton_completions.usage import main as usage

    return usage(options, program=f"{PROGRAM} {command}")


def _engines(command: str, options: Sequence[str]) -> int:
    from build_engine.cli.app import main as build

    build([command, *options], program=PROGRAM)
    return 0


_OWN_PACKAGES = frozenset(
    {"llm_pipeline", "frontend", "build_engine", "launcher", "complete_cli", "triton_completions"}
)
_PROGRAMS: dict[str, Callable[[str, Sequence[str]], int]] = {
    "serve": _serve,
    "complete": _complete,
    "keys": _keys,
    "usage": _usage,
    **dict.fromkeys(_ENGINE_COMMANDS, _engines),
}

if __name__ == "__main__":
    sys.exit(main())
