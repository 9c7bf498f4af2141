"""The program: completes a prompt. Text goes to standard output, everything else to standard error.

Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 nobody answers, 130 interrupted, 141 nobody reads any more.
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

from complete_cli.client import CompletionError, Endpoint, UnreachableError
from complete_cli.report import Report, TextWriter
from complete_cli.request import UsageError, parse_settings, read_prompt, request_body

_DEFAULT_URL = "http://127.0.0.1:9000/openai/v1"
_LOCAL_KEY = Path(".run/api-key")  # where `make serve` keeps the one that it made
_INTERRUPTED = 128 + signal.SIGINT
_UNREAD = 128 + signal.SIGPIPE

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def complete(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - or nothing reads standard input.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from this file.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Default: the first that the server lists.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", "-n", help="The most tokens to generate.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", "-t", help="0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Only the K most likely tokens.")] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Drop tokens less likely than this part of the likeliest.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed and parameters, same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text to end at; may be given several times.")] = None,
    choices: Annotated[int | None, typer.Option(help="How many choices to make (the API's n).")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="NAME=JSON", help="Any other field of the API.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Write the text while it is made.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Write the server's JSON, one object a line.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No line of timing.")] = False,
    base_url: Annotated[
        str, typer.Option(envvar="OPENAI_BASE_URL", help="Where the API is, up to and including /v1.")
    ] = _DEFAULT_URL,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar=["OPENAI_API_KEY", "API_KEY"],
            show_envvar=True,
            help="Better in the environment: other users see a command line.",
        ),
    ] = None,
) -> None:
    """Complete a prompt: complete "Once upon a time".

    The text goes to standard output as it is, timing to standard error.
    """
    sampling = {
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
            read_prompt(prompt, file, sys.stdin.buffer), sampling, parse_settings(settings or ()), stream=stream
        )
        endpoint = Endpoint(base_url, api_key or _local_key(base_url))
        body["model"] = model or body.get("model") or endpoint.first_model()
        _run(endpoint, body, as_json=as_json, quiet=quiet)


def _run(endpoint: Endpoint, body: dict[str, Any], *, as_json: bool, quiet: bool) -> None:
    """Writes the answer. Whatever ends it also ends the request: `closing` hangs up, and the server frees the slot."""
    report = Report()
    writer = TextWriter(_write, separator="\n")
    was_stopped = True
    try:
        with closing(endpoint.complete(body)) as answers:
            for answer in report.watch(answers, is_stream=bool(body["stream"])):
                if as_json:
                    _write(json.dumps(answer, ensure_ascii=False, separators=(",", ":")) + "\n")
                else:
                    for choice in answer["choices"]:
                        writer.add(choice)
        was_stopped = False
    finally:
        if not as_json:
            writer.close()
        if not quiet and report.first_s is not None:
            _say(report.line(was_stopped=was_stopped))


def _local_key(base_url: str) -> str | None:
    """The key of a `make serve` in this directory, for its own address only."""
    if base_url != _DEFAULT_URL or not _LOCAL_KEY.is_file():
        return None
    return _LOCAL_KEY.read_text(encoding="utf-8").strip() or None


def _write(text: str) -> None:
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    sys.stdout.buffer.flush()


def _say(line: str) -> None:
    """A line on standard error; on a terminal it begins a line of its own below the text, and is dim."""
    is_terminal = sys.stderr.isatty()
    if is_terminal and sys.stdout.isatty():
        sys.stderr.write("\n")
    sys.stderr.write(f"\x1b[2m{line}\x1b[0m\n" if is_terminal else f"{line}\n")
    sys.stderr.flush()


@contextmanager
def _exit_statuses() -> Iterator[None]:
    """Turns what can go wrong into one line and an exit status."""
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None
    except BrokenPipeError:
        # Nobody reads: the interpreter's own last flush must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(_UNREAD) from None
    except UsageError as error:
        _stop(2, str(error))
    except UnicodeEncodeError:  # bytes in an argument that are no text
        _stop(2, "The command line is not UTF-8 text.")
    except CompletionError as error:
        _stop(1, str(error))
    except UnreachableError as error:
        _stop(3, f"Nobody answers: {error}")


def _stop(status: int, message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(status)


def main() -> None:
    """The program."""
    app(prog_name="complete")
