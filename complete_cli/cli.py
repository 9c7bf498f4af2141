"""The program `complete`: completes a prompt. Text goes to standard output, everything else to standard error.

`complete chat` is a program of its own (chat_cli.py): a prompt that is the word chat is given as `complete -- chat`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from complete_cli import options as opt
from complete_cli.chat_cli import app as chat_app
from complete_cli.client import ServerAddress
from complete_cli.output import Output
from complete_cli.report import Report, TextWriter
from complete_cli.request import parse_fields, read_prompt, request_body

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def complete(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt. Without it, or with -, standard input is read.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from this file.")] = None,
    model: opt.Model = None,
    max_tokens: opt.MaxTokens = None,
    temperature: opt.Temperature = None,
    top_p: opt.TopP = None,
    top_k: opt.TopK = None,
    min_p: opt.MinP = None,
    seed: opt.Seed = None,
    stop: opt.Stop = None,
    choices: Annotated[int | None, typer.Option(help="Number of choices (the API's n).")] = None,
    fields: opt.Fields = None,
    stream: opt.Stream = True,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    base_url: opt.BaseUrl = None,
    api_key: opt.ApiKey = None,
    run_dir: opt.RunDir = Path(".run"),
    show_version: opt.Version = False,
) -> None:
    """Complete a prompt: complete "Once upon a time". To talk to a chat model: complete chat.

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
    endpoint = opt.choose_server(context, base_url, api_key, run_dir)
    with opt.exit_statuses(endpoint, output):
        set_fields = parse_fields(fields or ())
        content = {"prompt": read_prompt(prompt, file, sys.stdin.buffer)}
        body = request_body(content, options, set_fields, stream=stream)
        body["model"] = model or body.get("model") or endpoint.first_model()
        opt.note_unknown_fields(endpoint, set_fields, output, schema="CompletionRequest")
        _run(endpoint, body, output, as_json=as_json, quiet=quiet)


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


def main(arguments: Sequence[str] | None = None, *, program: str = "complete") -> None:
    """Runs the program. `arguments` None: those of the process."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["chat"]:
        chat_app(args=words[1:], prog_name=f"{program} chat")
    app(args=words, prog_name=program)
