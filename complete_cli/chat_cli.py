"""The program `complete chat`: one answer, or a conversation at the terminal.

Answers and tool calls go to standard output, everything else to standard error. Exit statuses are those of options.py.
"""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from complete_cli import options as opt
from complete_cli.chat_answer import ChatAnswer
from complete_cli.client import ServerAddress
from complete_cli.conversation import Conversation, load_conversation, load_tools
from complete_cli.interaction import Interaction, terminal_line
from complete_cli.output import Output
from complete_cli.report import Report
from complete_cli.request import UsageError, parse_fields, read_prompt, request_body

_PATH = "chat/completions"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def chat(
    context: typer.Context,
    message: Annotated[
        str | None,
        typer.Argument(help="The message; - reads standard input. Without it, a terminal begins a conversation."),
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the message from this file.")] = None,
    system: Annotated[str | None, typer.Option("--system", "-S", help="The system message.")] = None,
    tools: Annotated[Path | None, typer.Option(help="JSON file of the tools that the model may call.")] = None,
    load: Annotated[Path | None, typer.Option(help="Continue the conversation in this JSON file.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the conversation to this file after each answer.")] = None,
    model: opt.Model = None,
    max_tokens: opt.MaxTokens = None,
    temperature: opt.Temperature = None,
    top_p: opt.TopP = None,
    top_k: opt.TopK = None,
    min_p: opt.MinP = None,
    seed: opt.Seed = None,
    stop: opt.Stop = None,
    fields: opt.Fields = None,
    stream: opt.Stream = True,
    as_json: opt.AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Omit reasoning and the timing line.")] = False,
    base_url: opt.BaseUrl = None,
    api_key: opt.ApiKey = None,
    run_dir: opt.RunDir = Path(".run"),
    show_version: opt.Version = False,
) -> None:
    """Talk to a model: complete chat, or complete chat "What is the capital of France?" for one answer.

    Answers and tool calls go to standard output, reasoning and the timing line to standard error.
    """
    options = {
        "max_completion_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "seed": seed,
        "stop": stop or None,
    }
    output = Output()
    endpoint = opt.choose_server(context, base_url, api_key, run_dir)
    with opt.exit_statuses(endpoint, output):
        set_fields = parse_fields(fields or ())
        conversation = _conversation(load, system, tools)
        is_conversation = message is None and file is None and sys.stdin.isatty()
        if is_conversation and as_json:
            raise UsageError("--json is for one answer. Give the message as an argument, a file or standard input.")
        if not is_conversation:
            conversation.messages.append({"role": "user", "content": read_prompt(message, file, sys.stdin.buffer)})
        chosen = model or set_fields.get("model") or endpoint.first_model()
        opt.note_unknown_fields(endpoint, set_fields, output, schema="ChatCompletionRequest")
        session = _Session(endpoint, output, options, {**set_fields, "model": chosen}, stream, as_json, quiet, save)
        if is_conversation:
            session.converse(conversation)
        else:
            session.ask(conversation, session.new_answer())


def _conversation(load: Path | None, system: str | None, tools: Path | None) -> Conversation:
    conversation = Conversation() if load is None else load_conversation(load)
    if system is not None:
        conversation.set_system(system)
    if tools is not None:
        conversation.tools = load_tools(tools)
    return conversation


@dataclass(frozen=True)
class _Session:
    endpoint: ServerAddress
    output: Output
    options: dict[str, Any]
    fields: dict[str, Any]
    stream: bool
    as_json: bool
    quiet: bool
    save: Path | None

    def new_answer(self) -> ChatAnswer:
        return ChatAnswer(self.output, prints=not self.as_json, with_reasoning=not self.quiet)

    def converse(self, conversation: Conversation) -> None:
        """Talks at the terminal until its end."""
        self.output.note(f"{self.fields['model']} at {self.endpoint.base_url}. /help lists the commands.", dim=True)
        Interaction(
            conversation,
            self.ask,
            output=self.output,
            read_line=terminal_line,
            new_answer=self.new_answer,
            explain=lambda error: opt.describe(error, self.endpoint),
        ).run()

    def ask(self, conversation: Conversation, answer: ChatAnswer) -> None:
        """Prints an answer. On any exit, `closing` disconnects, which makes the server cancel the request."""
        body = request_body(conversation.fields(), self.options, self.fields, stream=self.stream)
        report = Report()
        was_cancelled = True
        try:
            with closing(self.endpoint.complete(body, path=_PATH)) as chunks:
                for chunk in report.watch(chunks, is_stream=bool(body["stream"])):
                    self._show(chunk, answer)
            was_cancelled = False
        finally:
            answer.close()
            if not self.quiet and report.first_s is not None:
                self.output.note(report.line(was_cancelled=was_cancelled), dim=True)
        if self.save is not None:
            Conversation([*conversation.messages, answer.message], conversation.tools).save(self.save)

    def _show(self, chunk: dict[str, Any], answer: ChatAnswer) -> None:
        if self.as_json:
            self.output.write(json.dumps(chunk, ensure_ascii=False, separators=(",", ":")) + "\n")
        for choice in chunk["choices"]:
            answer.add(choice)
