"""The playground shows errors of the server at the field that caused them."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import expect

from tests.support.browser import OpenPage, events
from tests.support.stack import RunningStack

pytestmark = pytest.mark.triton


def test_an_error_has_the_servers_message_at_its_field(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    said = scripted_stack.complete(prompt="Hi", temperature=3).json()["error"]["message"]
    playground = open_page(scripted_stack)
    page = playground.page
    playground.set("temperature", "3")
    playground.run()
    expect(page.locator("#failure .failure-text")).to_have_text(said)
    expect(page.locator("#failure")).to_contain_text("value_out_of_range")
    expect(page.locator("#field-temperature")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#field-temperature")).to_be_focused()
    playground.set("temperature", "1")
    playground.set("max_tokens", "4")
    playground.run()
    expect(page.locator("#failure")).to_be_hidden()
    assert page.locator("[aria-invalid]").count() == 0


def test_an_invalid_key_is_marked(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    playground = open_page(scripted_stack, key=None)
    page = playground.page
    page.fill("#key", "sk-wrong")
    playground.run()
    expect(page.locator("#failure")).to_contain_text("Invalid API key")
    expect(page.locator("#failure")).to_contain_text(".run/api-key")
    expect(page.locator("#key")).to_have_attribute("aria-invalid", "true")


def test_an_error_within_a_stream_keeps_the_text(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    error = {"message": "The engine has died.", "type": "overloaded_error", "param": None, "code": "engine_unavailable"}
    begun = events({"index": 0, "text": "Once", "finish_reason": None, "logprobs": None}).split("data: [DONE]")[0]
    answer = f"{begun}data: {json.dumps({'error': error})}\n\ndata: [DONE]\n\n"
    playground = open_page(scripted_stack, answer=answer)
    playground.run()
    expect(playground.page.locator("#failure .failure-text")).to_have_text("The engine has died.")
    assert playground.text() == "Once"
