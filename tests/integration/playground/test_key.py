"""The API key in the playground: from the link that the launcher prints, where to find it, and out of the way after."""

from __future__ import annotations

import re
from urllib.parse import quote

import pytest
from playwright.sync_api import expect

from tests.support.browser import PHONE, OpenPage, Playground
from tests.support.stack import RunningStack

pytestmark = pytest.mark.triton


def follow_link(playground: Playground) -> None:
    """Opens the link of the Ready block."""
    stack = playground.stack
    with playground.page.expect_response(re.compile(r"/models/")):
        playground.page.goto(f"{stack.base_url}/?a=b#key={quote(stack.api_key)}")


def test_link_brings_the_key_which_then_leaves_the_address(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    playground = open_page(scripted_stack, key=None)
    playground.page.goto("about:blank")
    follow_link(playground)
    page = playground.page
    expect(page.locator("#key")).to_have_value(scripted_stack.api_key)
    assert page.evaluate("location.href") == f"{scripted_stack.base_url}/?a=b"
    assert not any(scripted_stack.api_key in url for url in playground.requests)
    playground.set("max_tokens", "4")
    playground.run()
    expect(page.locator("#status")).to_have_text("Done.")
    page.reload()
    page.locator("body.is-ready").wait_for()
    expect(page.locator("#key")).to_have_value(scripted_stack.api_key)


def test_link_in_an_open_page_brings_the_key_too(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    playground = open_page(scripted_stack, key=None)
    with playground.page.expect_response(re.compile(r"/models/")):
        playground.page.evaluate(f"location.hash = 'key={quote(scripted_stack.api_key)}'")
    expect(playground.page.locator("#key")).to_have_value(scripted_stack.api_key)
    assert playground.page.evaluate("location.hash") == ""


def test_page_without_a_key_sends_no_request_that_needs_one(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    """Chromium logs a refused request as an error in its console."""
    playground = open_page(scripted_stack, key=None)
    expect(playground.page.locator("#status")).to_contain_text("Enter the API key")
    assert not [url for url in playground.requests if "/v1/" in url]


def test_run_without_a_key_names_the_places_of_the_key(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    playground = open_page(scripted_stack, key=None)
    playground.run()
    failure = playground.page.locator("#failure")
    expect(failure.locator(".failure-text")).to_have_text("Enter the API key above.")
    expect(failure).to_contain_text("make serve")
    expect(failure).to_contain_text(".run/api-key")
    expect(playground.page.locator("#key")).to_be_focused()
    expect(playground.page.locator("#status")).to_have_text("")


def test_accepted_key_makes_room_on_a_phone(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    page = open_page(scripted_stack, **PHONE).page
    expect(page.locator("#key")).to_be_hidden()
    assert page.locator("header").evaluate("each => each.getBoundingClientRect().height") <= 110
    page.locator("#show-key").click()
    expect(page.locator("#key")).to_be_visible()
    expect(page.locator("#key")).to_be_focused()


def test_accepted_key_stays_visible_on_a_desktop(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    page = open_page(scripted_stack).page
    expect(page.locator("#key")).to_be_visible()
    expect(page.locator("#show-key")).to_be_hidden()


def test_error_stands_in_the_completions_place(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    playground = open_page(scripted_stack, key=None)
    before = playground.page.locator("#output-title").bounding_box()
    playground.run()
    expect(playground.page.locator("#failure")).to_be_visible()
    assert playground.page.locator("#output-title").bounding_box() == before
