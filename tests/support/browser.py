"""A real headless Chromium, driven by playwright, and the playground opened in it."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.stack import RunningStack

_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
# Chromium has no sandbox as root (CI); the other flags keep it from contacting its vendor's hosts.
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
GREEDY = {"temperature": 0, "max_tokens": 12}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}

expect.set_options(timeout=30_000)  # machines are shared and slow at times


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Chromium of this machine. Skips the test if it is not installed."""
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip(f"no Chromium on PATH (looked for {', '.join(_NAMES)}); Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_FLAGS))
        yield browser
        browser.close()


class Served(Protocol):
    """A server that serves the playground at its base URL."""

    @property
    def base_url(self) -> str:
        """Without a slash at its end."""

    @property
    def api_key(self) -> str: ...


class Playground:
    """The page, opened; records what a user should never see in the console of a browser."""

    def __init__(self, browser: Browser, stack: Served, *, answer: str | None = None, **options: Any) -> None:
        """`answer` is a stream to show in place of the server's: one that no model can be made to give."""
        self.stack = stack
        self.complaints: list[str] = []
        self.requests: list[str] = []
        context = browser.new_context(**{**DESKTOP, **options})
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin="/".join(stack.base_url.split("/")[:3]))
        if answer is not None:
            stream = {"status": 200, "headers": {"content-type": "text/event-stream"}, "body": answer}
            for operation in ("completions", "chat/completions"):
                context.route(f"**/v1/{operation}", lambda route: route.fulfill(**stream))
        self.page: Page = context.new_page()
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._note)
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _note(self, message: Any) -> None:
        # Chromium logs every error response of a server here; the tests that expect one check it themselves.
        if message.type in {"error", "warning"} and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def open(self, *, key: str | None = "", tab: str = "") -> Playground:
        """Loads the page and types the key: the stack's own by default, no key if None. `tab`: "" or "chat"."""
        self.page.goto(self.stack.base_url + (f"/#{tab}" if tab else ""))
        self.page.locator("body.is-ready").wait_for()
        if key is not None:
            with self.page.expect_response(re.compile(r"/models/")):
                self.page.fill("#key", key or self.stack.api_key)
                self.page.locator("#key").blur()
        return self

    def set(self, name: str, value: object) -> None:
        """Gives a field a value, as a user does."""
        row = self.page.locator(f'[data-field="{name}"]')
        row.evaluate("row => { row.closest('details').open = true }")
        control = row.locator(f'[id="field-{name}"]')
        if isinstance(value, bool):
            control.set_checked(value)
        else:
            control.fill(str(value))

    def run(self) -> None:
        """Presses Ctrl+Enter and waits for the end."""
        self.page.keyboard.press("Control+Enter")
        expect(self.page.locator("#run")).to_be_enabled(timeout=60_000)

    def text(self, index: int = 0) -> str:
        return self.page.locator(".choice .text").nth(index).text_content() or ""

    def code(self, language: str) -> str:
        self.page.locator(f"#tab-{language}").click()
        return self.page.locator("#code").text_content() or ""

    def close(self) -> None:
        self.page.context.close()


OpenPage = Callable[..., Playground]


def schema_of(stack: RunningStack, schema: str = "CompletionRequest") -> dict[str, Any]:
    """The request fields in the OpenAPI document that the server serves."""
    with stack.client() as client:
        document = client.get("/openai/openapi.json").json()
    properties: dict[str, Any] = document["components"]["schemas"][schema]["properties"]
    return properties


def events(*choices: dict[str, Any]) -> str:
    """A stream with these choices, one event each."""
    return "".join(f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in choices) + "data: [DONE]\n\n"


def with_logprobs(**choice: Any) -> dict[str, Any]:
    """A choice of a chunk whose `tokens` have the natural logarithms `values` as logprobs."""
    tokens, values = choice.pop("tokens"), choice.pop("values")
    top = [{token: value, " else": math.log(0.01)} for token, value in zip(tokens, values, strict=True)]
    logprobs = {"tokens": tokens, "token_logprobs": values, "top_logprobs": top, "text_offset": [0] * len(tokens)}
    return {"index": 0, "finish_reason": None, **choice, "logprobs": logprobs}


def chat_events(*deltas: dict[str, Any], finish_reason: str = "stop", tokens: Sequence[str] = ()) -> str:
    """A stream of chat with these deltas, and the nth of `tokens` with the nth."""
    choices: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    for choice, token in zip(choices, tokens, strict=False):
        entry = {"token": token, "logprob": LIKELY, "bytes": [*token.encode()], "top_logprobs": []}
        choice["logprobs"] = {"content": [entry], "refusal": None}
    return events(*choices, {"index": 0, "delta": {}, "finish_reason": finish_reason})


LIKELY, UNLIKELY = math.log(0.95), math.log(0.05)
SOME_TOKENS = events(
    with_logprobs(text=" one", tokens=[" one"], values=[LIKELY], token_ids=[11]),
    with_logprobs(text="", tokens=["bytes:\\xf0\\x9f", "bytes:\\x98"], values=[LIKELY, UNLIKELY], token_ids=[12, 13]),
    with_logprobs(text="😀", tokens=["bytes:\\x80"], values=[LIKELY], token_ids=[14]),
    with_logprobs(text=" t", tokens=[" two"], values=[UNLIKELY], token_ids=[15]),
    with_logprobs(text="wo", tokens=["</s>"], values=[LIKELY], token_ids=[2], finish_reason="stop"),
)
TOOL_CALL = chat_events(
    {"role": "assistant", "content": ""},
    {"reasoning_content": "The weather is asked for."},
    {"content": "Let me look."},
    {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": ' "Oslo <b>"}'}}]},
    finish_reason="tool_calls",
    tokens=["", "<think>The weather is asked for.</think>", "Let me look.", "<tool_call>", '{"city":', ' "Oslo <b>"}'],
)
