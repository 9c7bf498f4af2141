"""Running a completion in the playground: text, timing, choices, cancelling, the key."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.support.browser import GREEDY, OpenPage
from tests.support.stack import RunningStack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton


def test_text_is_streamed_and_timed(cpu_stack: RunningStack, open_page: OpenPage) -> None:
    expected = cpu_stack.complete(prompt="Once upon a time", **GREEDY).json()
    playground = open_page(cpu_stack)
    page = playground.page
    page.fill("#prompt", "Once upon a time")
    playground.set("temperature", 0)
    playground.set("max_tokens", 12)
    playground.run()
    assert playground.text() == expected["choices"][0]["text"]
    expect(page.locator("#status")).to_have_text("Done.")
    expect(page.locator("#t-finish")).to_have_text("length")
    usage = expected["usage"]
    expect(page.locator("#t-tokens")).to_have_text(f"{usage['completion_tokens']} + {usage['prompt_tokens']} prompt")
    assert re.fullmatch(r"[\d.]+ m?s", page.text_content("#t-first") or "")
    assert float(page.text_content("#t-rate") or "") > 0
    assert "p95" in (page.text_content("#t-gap") or "")
    assert "median" in (page.get_attribute("#spark", "aria-label") or "")


def test_a_completion_without_streaming(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    playground = open_page(scripted_stack)
    playground.set("max_tokens", 8)
    playground.set("stream", False)
    playground.run()
    assert playground.text()
    expect(playground.page.locator("#t-tokens")).to_contain_text("8 + ")
    assert '"stream' not in playground.code("json")


def test_each_choice_has_a_card(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    playground = open_page(scripted_stack)
    playground.page.select_option("#prompt-form", "json")
    playground.page.fill("#prompt", '["One", "Two"]')
    playground.set("n", 2)
    playground.set("max_tokens", 6)
    playground.run()
    heads = playground.page.locator(".choice h3")
    expect(heads).to_have_text([f"Choice {index}length" for index in range(4)])
    expect(playground.page.locator("#t-tokens")).to_contain_text("24 + ")


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_cancelling_frees_the_slot(scripted_stack: RunningStack, open_page: OpenPage, how: str) -> None:
    cancelled = scripted_stack.decode_metric("decode_cancelled_requests_total")
    playground = open_page(scripted_stack)
    page = playground.page
    playground.set("max_tokens", 4000)
    page.keyboard.press("Control+Enter")
    page.locator(".token").nth(3).wait_for()
    page.click("#stop") if how == "button" else page.keyboard.press("Escape")
    expect(page.locator("#status")).to_have_text("Stopped.")
    is_idle = lambda: scripted_stack.decode_metric("decode_active_requests") == 0  # noqa: E731
    wait_until(is_idle, limit_s=5, what="the slot is free")
    assert scripted_stack.decode_metric("decode_cancelled_requests_total") == cancelled + 1
    assert playground.text()
    expect(page.locator("#run")).to_be_enabled()


def test_the_key_stays_in_this_tab(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    playground = open_page(scripted_stack)
    page = playground.page
    playground.set("max_tokens", "4")
    playground.run()
    assert page.evaluate("Object.values(sessionStorage)") == [scripted_stack.api_key]
    assert page.evaluate("localStorage.length") == 0
    assert page.evaluate("document.cookie") == ""
    assert page.url == f"{scripted_stack.base_url}/"
    assert all(scripted_stack.api_key not in url for url in playground.requests)
    assert all(
        scripted_stack.api_key not in playground.code(language) for language in ("curl", "python", "javascript", "json")
    )
    page.reload()
    expect(page.locator("#key")).to_have_value(scripted_stack.api_key)
