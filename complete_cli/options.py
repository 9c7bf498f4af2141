"""What `complete` and `complete chat` share: options, the choice of a server, exit statuses.

Exit status: 0 success, 1 rejected or failed, 2 invalid usage, 3 server unreachable, 130 interrupted, 141 output closed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from complete_cli.client import CompletionError, ServerAddress, ServerUnreachableError
from complete_cli.local_server import find_local_server
from complete_cli.output import Output
from complete_cli.request import UsageError, unknown_fields

_DEFAULT_URL = "http://127.0.0.1:9000/openai/v1"
_KEY_STATUS = 401
_INTERRUPTED = 128 + signal.SIGINT
_OUTPUT_CLOSED = 128 + signal.SIGPIPE


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"triton-completions {version('triton-completions')}")
        raise typer.Exit


BaseUrl = Annotated[
    str | None,
    typer.Option(
        envvar="OPENAI_BASE_URL",
        help="URL of the API, including /v1. Default: the server that runs from this directory.",
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar=["OPENAI_API_KEY", "API_KEY"],
        show_envvar=True,
        help="API key. Default: that of the server that runs from this directory, for its address only. Prefer the "
        "environment: other users can read the command line.",
    ),
]
RunDir = Annotated[Path, typer.Option(envvar="RUN_DIR", hidden=True)]
Model = Annotated[
    str | None, typer.Option("--model", "-m", help="Model name. Default: the first that the server lists.")
]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", "-n", help="Maximum number of tokens to generate.")]
Temperature = Annotated[float | None, typer.Option("--temperature", "-t", help="Sampling temperature; 0 is greedy.")]
TopP = Annotated[float | None, typer.Option(help="Nucleus sampling: cumulative probability to keep.")]
TopK = Annotated[int | None, typer.Option(help="Sample from the K most likely tokens.")]
MinP = Annotated[
    float | None, typer.Option(help="Drop tokens below this fraction of the most likely token's probability.")
]
Seed = Annotated[int | None, typer.Option(help="Random seed for sampling.")]
Stop = Annotated[list[str] | None, typer.Option(help="Stop string; repeatable.")]
Fields = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="NAME=JSON", help="Any other request field; repeatable.")
]
Stream = Annotated[bool, typer.Option("--stream/--no-stream", help="Print the text as it is generated.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the server's JSON, one object per line.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Omit the timing line.")]
Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
]


def choose_server(context: typer.Context, base_url: str | None, api_key: str | None, run_dir: Path) -> ServerAddress:
    """Returns where to send the request: to the address that was given, else to the server of this directory.

    Without a given address, a key from the environment is meant for another server if this one has a key of its own.
    """
    source = context.get_parameter_source("api_key")
    is_key_given = source is not None and source.name == "COMMANDLINE"
    local = find_local_server(run_dir)
    if base_url:
        return ServerAddress(base_url, api_key or (local.api_key if local and local.is_at(base_url) else None))
    if local is None:
        return ServerAddress(_DEFAULT_URL, api_key)
    return ServerAddress(local.base_url, api_key if is_key_given else local.api_key or api_key)


def note_unknown_fields(endpoint: ServerAddress, fields: Mapping[str, Any], output: Output, *, schema: str) -> None:
    """Notes each of the fields of --set that the server does not document."""
    if fields and (known := endpoint.request_fields(schema)):
        for sentence in unknown_fields(fields, known):
            output.note(f"note: {sentence}")


@contextmanager
def exit_statuses(endpoint: ServerAddress, output: Output) -> Iterator[None]:
    """Turns errors into one line on standard error and an exit status."""
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None
    except BrokenPipeError:
        # The reader has closed the pipe: the interpreter's last flush must not fail on it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(_OUTPUT_CLOSED) from None
    except UsageError as error:
        _exit(output, 2, str(error))
    except UnicodeEncodeError:  # an argument with bytes that are not UTF-8
        _exit(output, 2, "The command line is not UTF-8 text.")
    except CompletionError as error:
        _exit(output, 1, describe(error, endpoint))
    except ServerUnreachableError as error:
        _exit(output, 3, describe(error, endpoint))


def describe(error: CompletionError | ServerUnreachableError, endpoint: ServerAddress) -> str:
    """Returns the message of an error, with what to do."""
    if isinstance(error, ServerUnreachableError):
        return (
            f"No answer from {endpoint.base_url} ({error}). Is `make serve` running in this directory? --base-url or "
            "OPENAI_BASE_URL names another server."
        )
    return _key_message(endpoint) if error.status == _KEY_STATUS else str(error)


def _key_message(endpoint: ServerAddress) -> str:
    if endpoint.key is None:
        return (
            f"{endpoint.base_url} requires an API key. Set OPENAI_API_KEY, or --api-key. `make serve` stores its key "
            "in .run/api-key."
        )
    return (
        f"{endpoint.base_url} does not accept this API key (OPENAI_API_KEY, API_KEY or --api-key). `make serve` stores "
        "its key in .run/api-key."
    )


def _exit(output: Output, status: int, message: str) -> NoReturn:
    output.note(f"error: {message}")
    raise SystemExit(status)
