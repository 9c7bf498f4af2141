"""The playground in a real Chromium, against the running stack."""

from __future__ import annotations

import ast
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.stack import RunningStack
from tests.support.waiting import wait_until

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is one of the dev dependencies")

from tests.support.browser import PHONE, Browser, Playground, expect, running_browser  # noqa: E402

pytestmark = pytest.mark.triton

OpenPage = Callable[..., Playground]
GREEDY = {"temperature": 0, "max_tokens": 12}
PROMPT = 'It\'s "Once" upon a $time `in` <b>Köln</b>\\n!\n'


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens playgrounds. None of them may complain in the console, or ask anybody but its own server."""
    opened: list[Playground] = []

    def open_one(stack: RunningStack, *, key: str | None = "", **options: Any) -> Playground:
        opened.append(Playground(browser, stack, **options))
        return opened[-1].open(key=key)

    yield open_one
    for playground in opened:
        assert playground.complaints == []
        assert {url for url in playground.requests if not url.startswith(f"{playground.stack.base_url}/")} == set()
        playground.close()


def schema_of(stack: RunningStack) -> dict[str, Any]:
    with stack.client() as client:
        document = client.get("/openai/openapi.json").json()
    properties: dict[str, Any] = document["components"]["schemas"]["CompletionRequest"]["properties"]
    return properties


def events(*choices: dict[str, Any]) -> str:
    """A stream with these choices, an event for each."""
    return "".join(f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in choices) + "data: [DONE]\n\n"


# --- Running ---------------------------------------------------------------------------------------------------------


def test_it_streams_the_text_and_times_it(cpu_stack: RunningStack, open_page: OpenPage) -> None:
    expected = cpu_stack.complete(prompt="Once upon a time", **GREEDY).json()
    playground = open_page(cpu_stack)
    page = playground.page
    page.fill("#prompt", "Once upon a time")
    playground.set("temperature", 0)
    playground.set("max_tokens", 12)
    playground.run()
    assert playground.text() == expected["choices"][0]["text"]
    expect(page.locator("#status")).to_contain_text("Done: finish reason length")
    usage = expected["usage"]
    expect(page.locator("#t-tokens")).to_have_text(f"{usage['completion_tokens']} + {usage['prompt_tokens']} prompt")
    assert re.fullmatch(r"[\d.]+ m?s", page.text_content("#t-first") or "")
    assert float(page.text_content("#t-rate") or "") > 0
    assert "p95" in (page.text_content("#t-gap") or "")
    assert "median" in (page.get_attribute("#spark", "aria-label") or "")


def test_an_answer_that_does_not_stream(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    playground = open_page(scripted_stack)
    playground.set("max_tokens", 8)
    playground.set("stream", False)
    playground.run()
    assert playground.text()
    expect(playground.page.locator("#t-tokens")).to_contain_text("8 + ")
    assert '"stream' not in playground.code("json")


def test_choices_have_a_card_each(scripted_stack: RunningStack, open_page: OpenPage) -> None:
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
def test_stopping_frees_the_slot(scripted_stack: RunningStack, open_page: OpenPage, how: str) -> None:
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


# --- Fields ----------------------------------------------------------------------------------------------------------


def test_every_field_of_the_api_has_a_labelled_control(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    page = open_page(scripted_stack, key=None).page
    found = page.locator("[data-field]").evaluate_all("rows => rows.map(row => row.dataset.field)")
    fields = schema_of(scripted_stack)
    assert sorted(found) == sorted(set(fields) - {"model", "prompt"})
    for name in found:
        row = page.locator(f'[data-field="{name}"]')
        assert fields[name]["description"].split("`")[0].strip() in (row.locator(".help").text_content() or "")
    unlabelled = page.locator("input, select, textarea").evaluate_all(
        "all => all.filter(each => !each.labels.length && each.ariaHidden !== 'true').map(each => each.id)"
    )
    assert unlabelled == []


def test_fields_that_are_left_alone_are_not_sent(scripted_stack: RunningStack, open_page: OpenPage) -> None:
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


def test_what_the_model_cannot_do_is_marked_and_not_sent(scripted_stack: RunningStack, open_page: OpenPage) -> None:
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


# --- Tokens ----------------------------------------------------------------------------------------------------------


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


def test_log_probs_of_the_server_are_shown(cpu_stack: RunningStack, open_page: OpenPage) -> None:
    assert "logprobs" in schema_of(cpu_stack)
    playground = open_page(cpu_stack)
    playground.set("max_tokens", 8)
    playground.set("temperature", 0)  # the most likely token is one of the alternatives; a sampled one may not be
    playground.run()
    playground.page.locator(".token").nth(2).hover()
    tip = playground.page.text_content("#tip") or ""
    assert "log prob-" in tip or "log prob0" in tip
    expect(playground.page.locator("#tip .alternatives li")).to_have_count(5)


def with_log_probs(**choice: Any) -> dict[str, Any]:
    tokens, values = choice.pop("tokens"), choice.pop("values")
    top = [{token: value, " else": math.log(0.01)} for token, value in zip(tokens, values, strict=True)]
    logprobs = {"tokens": tokens, "token_logprobs": values, "top_logprobs": top, "text_offset": [0] * len(tokens)}
    return {"index": 0, "finish_reason": None, **choice, "logprobs": logprobs}


LIKELY, UNLIKELY = math.log(0.95), math.log(0.05)
SOME_TOKENS = events(
    with_log_probs(text=" one", tokens=[" one"], values=[LIKELY], token_ids=[11]),
    with_log_probs(text="", tokens=["bytes:\\xf0\\x9f", "bytes:\\x98"], values=[LIKELY, UNLIKELY], token_ids=[12, 13]),
    with_log_probs(text="😀", tokens=["bytes:\\x80"], values=[LIKELY], token_ids=[14]),
    with_log_probs(text=" t", tokens=[" two"], values=[UNLIKELY], token_ids=[15]),
    with_log_probs(text="wo", tokens=["</s>"], values=[LIKELY], token_ids=[2], finish_reason="stop"),
)


def test_text_is_cut_along_its_tokens(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    """Also where it lags behind them, where several make one character, and where one leaves no text."""
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


def test_what_a_model_writes_is_never_markup(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    hostile = with_log_probs(text=HOSTILE, tokens=[HOSTILE], values=[LIKELY], finish_reason="stop")
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


# --- Errors ----------------------------------------------------------------------------------------------------------


def test_an_error_is_the_servers_and_stands_at_its_field(scripted_stack: RunningStack, open_page: OpenPage) -> None:
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


def test_a_wrong_key_is_marked(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    playground = open_page(scripted_stack, key=None)
    page = playground.page
    page.fill("#key", "sk-wrong")
    playground.run()
    expect(page.locator("#failure")).to_contain_text("Invalid API key")
    expect(page.locator("#key")).to_have_attribute("aria-invalid", "true")


def test_an_error_in_the_middle_of_a_stream_leaves_the_text(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    error = {"message": "The engine has died.", "type": "overloaded_error", "param": None, "code": "engine_unavailable"}
    begun = events({"index": 0, "text": "Once", "finish_reason": None, "logprobs": None}).split("data: [DONE]")[0]
    answer = f"{begun}data: {json.dumps({'error': error})}\n\ndata: [DONE]\n\n"
    playground = open_page(scripted_stack, answer=answer)
    playground.run()
    expect(playground.page.locator("#failure .failure-text")).to_have_text("The engine has died.")
    assert playground.text() == "Once"


# --- The key ---------------------------------------------------------------------------------------------------------


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
    assert all(scripted_stack.api_key not in playground.code(language) for language in ("curl", "python", "json"))
    page.reload()
    expect(page.locator("#key")).to_have_value(scripted_stack.api_key)


# --- Code ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["curl", "python"])
@pytest.mark.parametrize("stream", [True, False])
def test_the_code_does_the_same(cpu_stack: RunningStack, open_page: OpenPage, language: str, stream: bool) -> None:
    playground = open_page(cpu_stack, key=None)
    playground.page.fill("#prompt", PROMPT)
    playground.set("temperature", 0)
    playground.set("max_tokens", 12)
    playground.set("min_p", "0.5")  # not a field of OpenAI's
    playground.set("stream", stream)
    code = playground.code(language)
    command = ["bash", "-c", code] if language == "curl" else [sys.executable, "-c", code]
    environment = {"OPENAI_API_KEY": cpu_stack.api_key, "PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    expected = cpu_stack.complete(prompt=PROMPT, min_p=0.5, **GREEDY).json()["choices"][0]["text"]
    assert written_by(done.stdout.decode(), language, stream) == expected


def written_by(output: str, language: str, stream: bool) -> str:
    if language == "python":
        return output if stream else output.removesuffix("\n")
    if not stream:
        return str(json.loads(output)["choices"][0]["text"])
    chunks = [json.loads(line[6:]) for line in output.splitlines() if line.startswith("data: {")]
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


def test_the_copy_button_copies_the_code(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    playground = open_page(scripted_stack, key=None)
    code = playground.code("python")
    playground.page.click("#copy-code")
    expect(playground.page.locator("#copy-announcement")).to_have_text("Copied")
    assert playground.page.evaluate("navigator.clipboard.readText()") == code


# Whatever can stand in a JSON body, lone halves of surrogate pairs included.
TEXT = st.text(st.characters(codec=None, categories=None), max_size=20) | st.text(
    "'\"\\$`!\n\r\t\0\x85\u2028{}#", max_size=12
)
NUMBER = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
BODY = st.fixed_dictionaries({"model": TEXT, "prompt": JSON, "extra": JSON})


def test_no_value_breaks_out_of_the_code(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    page = open_page(scripted_stack, key=None).page
    code = page.evaluate_handle("import('/playground/code.js')")

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(BODY)
    def check(body: dict[str, Any]) -> None:
        made = code.evaluate(
            "(code, body) => [code.curl('http://h/v1', JSON.parse(body)), "
            "code.python('http://h/v1', JSON.parse(body))]",
            json.dumps(body),
        )
        assert equal(json.loads(arguments_of_curl(made[0])[-1]), body)
        assert equal(arguments_of_python(made[1]), body)

    check()


def arguments_of_curl(command: str) -> list[str]:
    """What a real bash would hand to curl."""
    script = "curl() { printf '%s\\0' \"$@\"; }; OPENAI_API_KEY=key\n" + command
    done = subprocess.run(["bash"], input=script.encode(), capture_output=True, timeout=10, check=True)
    assert done.stderr == b""
    return done.stdout.decode().split("\0")[:-1]


def arguments_of_python(program: str) -> dict[str, Any]:
    calls = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Call)]
    (create,) = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "create"]
    found = {str(each.arg): ast.literal_eval(each.value) for each in create.keywords}
    return {**found.pop("extra_body"), **found}


def equal(found: Any, sent: Any) -> bool:
    """As JSON, where numbers are doubles, and the order of members is none of our business."""
    one, other = (json.loads(json.dumps(value), parse_int=float) for value in (found, sent))
    return bool(one == other)


# --- Looks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [320, 1280])
def test_nothing_sticks_out_sideways(scripted_stack: RunningStack, open_page: OpenPage, width: int) -> None:
    playground = open_page(scripted_stack, viewport={"width": width, "height": 800})
    playground.set("max_tokens", "32")
    playground.run()
    page = playground.page
    page.locator("details").evaluate_all("all => all.forEach(each => { each.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".token").nth(5).click()
    box = page.locator("#tip").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width


def test_a_finger_finds_every_button(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    page = open_page(scripted_stack, key=None, **PHONE).page
    heights = page.locator("button, select, summary").evaluate_all(
        "all => all.map(each => each.getBoundingClientRect().height)"
    )
    assert min(heights) >= 44


# Of text on the page, and on the colours of tokens: WCAG's contrast ratio.
CONTRAST = """
() => {
  const luminance = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => {
      const value = part / 255;
      return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const backOf = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return /, 0\\)$/.test(colour) ? backOf(element.parentElement) : colour;
  };
  const ratio = (element) => {
    const [a, b] = [luminance(getComputedStyle(element).color), luminance(backOf(element))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  const seen = document.querySelectorAll("h1, h2, label, p, a, summary, dt, dd, li, code, button:enabled, .token");
  return [...seen].filter((each) => each.checkVisibility() && each.textContent.trim())
    .map((each) => [ratio(each), `${each.tagName} ${each.className} ${each.textContent.slice(0, 20)}`])
    .filter(([value]) => value < 4.5);
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(scripted_stack: RunningStack, open_page: OpenPage, scheme: str) -> None:
    playground = open_page(scripted_stack, color_scheme=scheme, answer=SOME_TOKENS)
    playground.run()
    page = playground.page
    page.locator("details").evaluate_all("all => all.forEach(each => { each.open = true })")
    assert page.evaluate(CONTRAST) == []
