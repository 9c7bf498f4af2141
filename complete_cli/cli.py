"""The program: completes a prompt. Text goes to standard output, everything else to standard error.

Exit status: 0 success, 1 rejected or failed, 2 invalid usage, 3 server unreachable, 130 interrupted, 141 output closed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from complete_cli.client import CompletionError, ServerAddress, ServerUnreachableError
from complete_cli.report import Report, TextWriter
from complete_cli.request import UsageError, parse_fields, read_prompt, request_body

_DEFAULT_URL = "http://127.0.0.1:9000/openai/v1"
_LOCAL_KEY = Path(".run/api-key")  # where `make serve` stores a generated key
_INTERRUPTED = 128 + signal.SIGINT
_OUTPUT_CLOSED = 128 + signal.SIGPIPE

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def complete(
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
    min_p: Annotated[float | None, typer.Option(help="Minimum probability relative to the most likely token.")] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed for sampling.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop string; repeatable.")] = None,
    choices: Annotated[int | None, typer.Option(help="Number of choices (the API's n).")] = None,
    fields: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="NAME=JSON", help="Any other request field; repeatable.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Print the text as it is generated.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the server's JSON, one object per line.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Omit the timing line.")] = False,
    base_url: Annotated[
        str, typer.Option(envvar="OPENAI_BASE_URL", help="URL of the API, including /v1.")
    ] = _DEFAULT_URL,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar=["OPENAI_API_KEY", "API_KEY"],
            show_envvar=True,
            help="API key. Prefer the environment: other users can read the command line.",
        ),
    ] = None,
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
    with _exit_statuses():
        body = request_body(
            read_prompt(prompt, file, sys.stdin.buffer), options, parse_fields(fields or ()), stream=stream
        )
        endpoint = ServerAddress(base_url, api_key or _local_key(base_url))
        body["model"] = model or body.get("model") or endpoint.first_model()
        _run(endpoint, body, as_json=as_json, quiet=quiet)


def _run(endpoint: ServerAddress, body: dict[str, Any], *, as_json: bool, quiet: bool) -> None:
    """Prints the response. On any exit, `closing` disconnects, which makes the server cancel the request."""
    report = Report()
    writer = TextWriter(_write, separator="\n")
    was_cancelled = True
    try:
        with closing(endpoint.complete(body)) as chunks:
            for chunk in report.watch(chunks, is_stream=bool(body["stream"])):
                if as_json:
                    _write(json.dumps(chunk, ensure_ascii=False, separators=(",", ":")) + "\n")
                else:
                    for choice in chunk["choices"]:
                        writer.add(choice)
        was_cancelled = False
    finally:
        if not as_json:
            writer.close()
        if not quiet and report.first_s is not None:
            _write_timing(report.line(was_cancelled=was_cancelled))


def _local_key(base_url: str) -> str | None:
    """Returns the key that `make serve` has stored in this directory, for its default address only."""
    if base_url != _DEFAULT_URL or not _LOCAL_KEY.is_file():
        return None
    return _LOCAL_KEY.read_text(encoding="utf-8").strip() or None


def _write(text: str) -> None:
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    sys.stdout.buffer.flush()


def _write_timing(line: str) -> None:
    """Writes a line to standard error; on a terminal, dim and on a new line below the text."""
    is_terminal = sys.stderr.isatty()
    if is_terminal and sys.stdout.isatty():
        sys.stderr.write("\n")
    sys.stderr.write(f"\x1b[2m{line}\x1b[0m\n" if is_terminal else f"{line}\n")
    sys.stderr.flush()


@contextmanager
def _exit_statuses() -> Iterator[None]:
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
        _exit(2, str(error))
    except UnicodeEncodeError:  # an argument with bytes that are not UTF-8
        _exit(2, "The command line is not UTF-8 text.")
    except CompletionError as error:
        _exit(1, str(error))
    except ServerUnreachableError as error:
        _exit(3, f"The server is unreachable: {error}. Check --base-url, and whether the server is running.")


def _exit(status: int, message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(status)


def main() -> None:
    """Runs the program."""
    app(prog_name="complete")
