"""The playground has a control for every field of the API, and sends only the fields that were changed."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from tests.support.browser import OpenPage, schema_of
from tests.support.stack import RunningStack

pytestmark = pytest.mark.triton


@pytest.mark.parametrize(("tab", "schema"), [("", "CompletionRequest"), ("chat", "ChatCompletionRequest")])
def test_every_field_of_the_api_has_a_labelled_control(
    scripted_stack: RunningStack, open_page: OpenPage, tab: str, schema: str
) -> None:
    page = open_page(scripted_stack, key=None, tab=tab).page
    found = page.locator("[data-field]").evaluate_all("rows => rows.map(row => row.dataset.field)")
    fields = schema_of(scripted_stack, schema)
    assert sorted(found) == sorted(set(fields) - {"model", "prompt", "messages", "tools"})
    for name in found:
        row = page.locator(f'[data-field="{name}"]')
        assert fields[name]["description"].split("`")[0].strip() in (row.locator(".help").text_content() or "")
    unlabelled = page.locator("input, select, textarea").evaluate_all(
        "all => all.filter(each => !each.labels.length && each.ariaHidden !== 'true').map(each => each.id)"
    )
    assert unlabelled == []


def test_unchanged_fields_are_not_sent(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    playground = open_page(scripted_stack, key=None)
    before = json.loads(playground.code("json"))
    playground.set("temperature", "0.5")
    playground.set("stop", "\\n\nEnd \\u00e9")
    playground.set("seed", str(2**63 - 1))
    playground.set("skip_special_tokens", False)
    changed = {"temperature": 0.5, "stop": ["\n", "End é"], "seed": 2**63 - 1, "skip_special_tokens": False}
    assert json.loads(playground.code("json")) == {**before, **changed}
    playground.page.click("#reset")
    assert json.loads(playground.code("json")) == before


def test_a_whole_int64_seed_reaches_the_server(cpu_stack: RunningStack, open_page: OpenPage) -> None:
    """As a double it would be 2**63, which is out of range."""
    playground = open_page(cpu_stack)
    playground.set("seed", str(2**63 - 1))
    playground.set("max_tokens", 4)
    playground.run()
    expected = cpu_stack.complete(prompt=playground.page.input_value("#prompt"), seed=2**63 - 1, max_tokens=4)
    assert playground.text() == expected.json()["choices"][0]["text"]


def test_unsupported_fields_are_marked_and_not_sent(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    playground = open_page(scripted_stack, key=None)
    capabilities = {"min_p": False, "top_k": 7}
    body = json.dumps({"id": "x", "capabilities": capabilities})
    playground.page.route(
        "**/v1/models/*", lambda route: route.fulfill(status=200, content_type="application/json", body=body)
    )
    playground.set("min_p", "0.3")
    playground.set("top_k", "50")
    playground.open()
    playground.set("top_k", "50")
    row = playground.page.locator('[data-field="min_p"]')
    expect(row).to_have_class(re.compile("denied"))
    expect(row.locator("input[type=number]")).to_be_disabled()
    expect(row.locator(".note")).to_have_text("Not supported by this model.")
    expect(playground.page.locator("#field-top_k")).to_have_attribute("max", "7")
