"""The program: completes a prompt. Text goes to standard output, everything else to standard error.

Exit status: 0 success, 1 rejected or failed, 2 invalid usage, 3 server unreachable, 130 interrupted, 141 output closed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from complete_cli.client import CompletionError, ServerAddress, ServerUnreachableError
from complete_cli.local_server import find_local_server
from complete_cli.output import Output
from complete_cli.report import Report, TextWriter
from complete_cli.request import UsageError, parse_fields, read_prompt, request_body, unknown_fields

_DEFAULT_URL = "http://127.0.0.1:9000/openai/v1"
_KEY_STATUS = 401
_INTERRUPTED = 128 + signal.SIGINT
_OUTPUT_CLOSED = 128 + signal.SIGPIPE

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"triton-completions {version('triton-completions')}")
        raise typer.Exit


_BaseUrl = Annotated[
    str | None,
    typer.Option(
        envvar="OPENAI_BASE_URL",
        help="URL of the API, including /v1. Default: the server that runs from this directory.",
    ),
]
_ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar=["OPENAI_API_KEY", "API_KEY"],
        show_envvar=True,
        help="API key. Default: that of the server that runs from this directory, for its address only. Prefer the "
        "environment: other users can read the command line.",
    ),
]
_Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
]


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def complete(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt. Without it, or with -, standard input is read.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from this file.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Model name. Default: the first that the server lists.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "-n", help="Maximum number of tokens to generate.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", "-t", help="Sampling temperature; 0 is greedy.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling: cumulative probability to keep.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from the K most likely tokens.")] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Drop tokens below this fraction of the most likely token's probability.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed for sampling.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop string; repeatable.")] = None,
    choices: Annotated[int | None, typer.Option(help="Number of choices (the API's n).")] = None,
    fields: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="NAME=JSON", help="Any other request field; repeatable.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Print the text as it is generated.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the server's JSON, one object per line.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Omit the timing line.")] = False,
    base_url: _BaseUrl = None,
    api_key: _ApiKey = None,
    run_dir: Annotated[Path, typer.Option(envvar="RUN_DIR", hidden=True)] = Path(".run"),
    show_version: _Version = False,
) -> None:
    """Complete a prompt: complete "Once upon a time".

    The text goes to standard output, the timing line to standard error.
    """
    options = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "seed": seed,
        "stop": stop or None,
        "n": choices,
    }
    output = Output()
    source = context.get_parameter_source("api_key")
    is_key_given = source is not None and source.name == "COMMANDLINE"
    endpoint = _choose_server(base_url, api_key, is_key_given=is_key_given, run_dir=run_dir)
    with _exit_statuses(endpoint, output):
        set_fields = parse_fields(fields or ())
        body = request_body(read_prompt(prompt, file, sys.stdin.buffer), options, set_fields, stream=stream)
        body["model"] = model or body.get("model") or endpoint.first_model()
        if set_fields and (known := endpoint.request_fields()):
            for sentence in unknown_fields(set_fields, known):
                output.note(f"note: {sentence}")
        _run(endpoint, body, output, as_json=as_json, quiet=quiet)


def _choose_server(base_url: str | None, api_key: str | None, *, is_key_given: bool, run_dir: Path) -> ServerAddress:
    """Returns where to send the request: to the address that was given, else to the server of this directory.

    Without a given address, a key from the environment is meant for another server if this one has a key of its own.
    """
    local = find_local_server(run_dir)
    if base_url:
        return ServerAddress(base_url, api_key or (local.api_key if local and local.is_at(base_url) else None))
    if local is None:
        return ServerAddress(_DEFAULT_URL, api_key)
    return ServerAddress(local.base_url, api_key if is_key_given else local.api_key or api_key)


def _run(endpoint: ServerAddress, body: dict[str, Any], output: Output, *, as_json: bool, quiet: bool) -> None:
    """Prints the response. On any exit, `closing` disconnects, which makes the server cancel the request."""
    report = Report()
    writer = TextWriter(output.write, separator="\n")
    was_cancelled = True
    try:
        with closing(endpoint.complete(body)) as chunks:
            for chunk in report.watch(chunks, is_stream=bool(body["stream"])):
                if as_json:
                    output.write(json.dumps(chunk, ensure_ascii=False, separators=(",", ":")) + "\n")
                else:
                    for choice in chunk["choices"]:
                        writer.add(choice)
        was_cancelled = False
    finally:
        if not as_json:
            writer.close()
        if not quiet and report.first_s is not None:
            output.note(report.line(was_cancelled=was_cancelled), dim=True)


@contextmanager
def _exit_statuses(endpoint: ServerAddress, output: Output) -> Iterator[None]:
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
        _exit(output, 1, _key_message(endpoint) if error.status == _KEY_STATUS else str(error))
    except ServerUnreachableError as error:
        _exit(
            output,
            3,
            f"No answer from {endpoint.base_url} ({error}). Is `make serve` running in this directory? --base-url or "
            "OPENAI_BASE_URL names another server.",
        )


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


def main(arguments: Sequence[str] | None = None, *, program: str = "complete") -> None:
    """Runs the program. `arguments` None: those of the process."""
    app(args=arguments, prog_name=program)
