"""The playground shows the ids and logprobs of single tokens, and never takes text for markup."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import expect

from tests.support.browser import GREEDY, LIKELY, SOME_TOKENS, OpenPage, events, schema_of, with_logprobs
from tests.support.stack import RunningStack

pytestmark = pytest.mark.triton


def test_a_token_shows_its_id(cpu_stack: RunningStack, open_page: OpenPage) -> None:
    ids = cpu_stack.complete(prompt="Once upon a time", **GREEDY, return_token_ids=True).json()["choices"][0]
    playground = open_page(cpu_stack)
    playground.page.fill("#prompt", "Once upon a time")
    playground.set("temperature", 0)
    playground.set("max_tokens", 12)
    playground.run()
    playground.page.locator(".token").nth(2).hover()
    expect(playground.page.locator("#tip")).to_be_visible()
    assert f"id{ids['token_ids'][2]}" in (playground.page.text_content("#tip") or "")


def test_an_echoed_token_shows_its_id(cpu_stack: RunningStack, open_page: OpenPage) -> None:
    prompt = "Once upon a time"
    ids = cpu_stack.complete(prompt=prompt, max_tokens=1, return_token_ids=True).json()["choices"][0][
        "prompt_token_ids"
    ]
    playground = open_page(cpu_stack)
    playground.page.fill("#prompt", prompt)
    playground.set("echo", True)
    playground.set("max_tokens", 2)
    playground.run()
    playground.page.locator(".token").nth(1).hover()
    expect(playground.page.locator("#tip")).to_contain_text(f"id{ids[1]}")


def test_logprobs_of_the_server_are_shown(cpu_stack: RunningStack, open_page: OpenPage) -> None:
    assert "logprobs" in schema_of(cpu_stack)
    playground = open_page(cpu_stack)
    playground.set("max_tokens", 8)
    playground.set("temperature", 0)  # the most likely token is one of the alternatives; a sampled one may not be
    playground.run()
    playground.page.locator(".token").nth(2).hover()
    tip = playground.page.text_content("#tip") or ""
    assert "logprob-" in tip or "logprob0" in tip
    expect(playground.page.locator("#tip .alternatives li")).to_have_count(5)


def test_text_is_split_into_its_tokens(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    """Also if text arrives after its tokens, if several tokens form a character, and if one has no text."""
    playground = open_page(scripted_stack, answer=SOME_TOKENS)
    playground.run()
    tokens = playground.page.locator(".token")
    assert tokens.all_text_contents() == [" one", "😀", " two", ""]
    assert playground.text() == " one😀 two"
    assert [each.split()[1] for each in tokens.evaluate_all("all => all.map(each => each.className)")] == [
        "p0",
        "p4",
        "p4",
        "p0",
    ]
    tokens.nth(2).hover()
    said = playground.page.text_content("#tip") or ""
    assert "id15" in said
    assert "5.0 %" in said
    assert "-2.9957" in said
    expect(playground.page.locator("#tip .alternatives li")).to_have_count(2)


def test_the_arrow_keys_walk_through_the_tokens(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    playground = open_page(scripted_stack, answer=SOME_TOKENS)
    page = playground.page
    playground.run()
    page.focus(".text")
    said = page.locator("#token-announcement")
    for key, token in [("ArrowRight", '" one", id 11'), ("ArrowRight", '"😀", 3 tokens'), ("End", '"</s>", id 2')]:
        page.keyboard.press(key)
        expect(said).to_contain_text(token)
        expect(page.locator("#tip")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#tip")).to_be_hidden()


HOSTILE = "<img src=x onerror=\"document.title='broken in'\"><script>document.title='broken in'</script>"


def test_output_of_a_model_is_never_markup(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    hostile = with_logprobs(text=HOSTILE, tokens=[HOSTILE], values=[LIKELY], finish_reason="stop")
    playground = open_page(scripted_stack, answer=events(hostile))
    page = playground.page
    page.fill("#prompt", HOSTILE)
    playground.run()
    page.locator(".token").first.hover()
    assert playground.text() == HOSTILE
    assert json.dumps(HOSTILE) in (page.text_content("#tip") or "")
    assert HOSTILE in json.loads(playground.code("json"))["prompt"]
    assert page.locator("main img, main script, #tip img").count() == 0
    assert page.title().startswith("Playground")
