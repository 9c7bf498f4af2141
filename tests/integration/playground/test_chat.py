"""The chat tab of the playground: conversation, system message, tools and their results, reasoning, editing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.support.browser import TOOL_CALL, OpenPage, Playground, chat_events
from tests.support.stack import MODEL, RunningStack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def said(stack: RunningStack, *messages: tuple[str, str], **fields: Any) -> str:
    """The content of the server's own answer."""
    body = {"model": MODEL, "messages": [{"role": role, "content": content} for role, content in messages], **fields}
    with stack.client() as client:
        answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def send(playground: Playground, text: str) -> None:
    playground.page.fill("#message", text)
    playground.run()


def messages_of(playground: Playground) -> list[dict[str, Any]]:
    """The conversation as the next request would send it."""
    messages: list[dict[str, Any]] = json.loads(playground.code("json"))["messages"]
    return messages


def answer_of(playground: Playground, turn: int = -1) -> str:
    """The text of an answer, without the tokens that have none."""
    return playground.page.locator(".turn.assistant .choice > .text").nth(turn).text_content() or ""


def test_conversation_is_the_servers(cpu_stack: RunningStack, open_page: OpenPage) -> None:
    """Two turns with a system message: the second request has the first answer. Tokens show their ids."""
    playground = open_page(cpu_stack, tab="chat")
    page = playground.page
    playground.set("temperature", 0)
    playground.set("max_tokens", 12)
    page.fill("#system", "You are terse.")
    send(playground, "Name a colour.")
    first = said(cpu_stack, ("system", "You are terse."), ("user", "Name a colour."), temperature=0, max_tokens=12)
    assert answer_of(playground) == first
    expect(page.locator("#message")).to_have_value("")
    expect(page.locator("#status")).to_have_text("Done.")
    page.locator(".token").nth(1).hover()
    expect(page.locator("#tip .alternatives li")).to_have_count(5)
    send(playground, "Another?")
    history = [("system", "You are terse."), ("user", "Name a colour."), ("assistant", first), ("user", "Another?")]
    assert answer_of(playground) == said(cpu_stack, *history, temperature=0, max_tokens=12)
    assert [(each["role"], each["content"]) for each in messages_of(playground)][:4] == history


def test_answer_is_made_again_and_messages_are_edited(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    playground = open_page(scripted_stack, tab="chat")
    page = playground.page
    playground.set("max_tokens", 6)
    send(playground, "One <b>question</b>")
    page.fill("#message", "A draft stays")
    page.get_by_role("button", name="Regenerate this answer").click()
    expect(page.locator("#status")).to_have_text("Done.")
    expect(page.locator(".turn")).to_have_count(2)
    expect(page.locator("#message")).to_have_value("A draft stays")
    page.get_by_role("button", name="Edit this message").click()
    expect(page.get_by_label("Message", exact=True).first).to_be_focused()
    page.keyboard.press("Control+A")
    page.keyboard.type("Another")
    page.get_by_role("button", name="Send again").click()
    expect(page.locator(".turn.user .said")).to_have_text("Another")
    expect(page.locator("#run")).to_be_enabled()
    page.get_by_role("button", name="Edit this answer").click()
    page.locator(".editor textarea").fill("Rewritten")
    page.get_by_role("button", name="Save").click()
    contents = [(each["role"], each["content"]) for each in messages_of(playground)]
    assert contents == [("user", "Another"), ("assistant", "Rewritten"), ("user", "A draft stays")]
    page.get_by_role("button", name="Delete this answer").click()
    page.click("#clear")
    assert [each["content"] for each in messages_of(playground)] == ["A draft stays"]
    expect(page.locator("#turns-empty")).to_be_visible()


def test_stopped_answer_stays_and_can_be_continued(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    playground = open_page(scripted_stack, tab="chat")
    page = playground.page
    playground.set("max_tokens", 4000)
    page.keyboard.press("Control+Enter")
    page.locator(".token").nth(3).wait_for()
    expect(page.locator("#mode-completion")).to_be_disabled()
    page.keyboard.press("Escape")
    expect(page.locator("#status")).to_have_text("Stopped.")
    wait_until(lambda: scripted_stack.active_requests == 0, limit_s=5, what="the slot is free")
    expect(page.locator(".turn.assistant .chip")).to_have_text("stopped")
    begun = messages_of(playground)[-1]["content"]
    assert begun
    playground.set("max_tokens", 4)
    playground.set("continue_final_message", True)
    playground.run()
    assert messages_of(playground)[-1]["content"].startswith(begun)
    expect(page.locator(".turn.assistant")).to_have_count(1)


def test_tool_calls_take_results_by_hand(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    playground = open_page(scripted_stack, tab="chat", answer=TOOL_CALL)
    page = playground.page
    page.locator("#tools-setup summary").click()
    page.fill("#tools", json.dumps([TOOL]))
    expect(page.locator("#tools-count")).to_have_text("f")
    send(playground, "Weather?")
    expect(page.locator(".reasoning").first).to_contain_text("The weather is asked for.")
    expect(page.locator(".turn.assistant .said")).to_have_text("Let me look.")
    expect(page.locator(".call-name")).to_have_text("f")
    expect(page.locator(".call pre")).to_have_text('{"city": "Oslo <b>"}')
    assert page.locator(".turn b").count() == 0
    page.get_by_text("Tokens, as the model wrote them").click()
    expect(page.locator(".turn.assistant .text").last).to_have_text(
        '<think>The weather is asked for.</think>Let me look.<tool_call>{"city": "Oslo <b>"}'
    )
    playground.run()
    expect(page.locator(".result .problem")).to_have_text("Enter what the function returned.")
    expect(page.get_by_label("Result of f")).to_be_focused()
    page.keyboard.type("snow")
    function = {"name": "f", "arguments": '{"city": "Oslo <b>"}'}
    assert messages_of(playground)[1:] == [
        {
            "role": "assistant",
            "content": "Let me look.",
            "reasoning_content": "The weather is asked for.",
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "snow"},
    ]
    assert json.loads(playground.code("json"))["tools"] == [TOOL]
    page.locator("#message").focus()
    playground.run()
    expect(page.locator(".turn.assistant")).to_have_count(2)


INVALID_TOOLS = [
    ('[{"type": "function",}]', r"This is not valid JSON: .* \(line 1, column 22\)\."),
    ("{}", r"This must be a list"),
    ('[{"type": "function"}]', r"Item 1 must have"),
    (json.dumps([{"type": "function", "function": {"name": "a b"}}]), r"tools\[0\]\.function\.name must be"),
]


def test_what_is_invalid_is_explained_in_its_place(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    """The last tools are rejected by the server, whose message is shown at the tools, as are those of the page."""
    playground = open_page(scripted_stack, tab="chat")
    page = playground.page
    send(playground, " ")
    expect(page.locator("#message-problem")).to_have_text("Enter a message.")
    expect(page.locator("#message")).to_be_focused()
    page.fill("#message", "Hi")
    for tools, problem in INVALID_TOOLS:
        assert not [url for url in playground.requests if url.endswith("/chat/completions")]
        page.locator("#tools-setup").evaluate("details => { details.open = true }")
        page.fill("#tools", tools)
        page.locator("#message").focus()
        playground.run()
        expect(page.locator("#tools-problem")).to_have_text(re.compile(problem))
        expect(page.locator("#tools")).to_be_focused()
    page.click("#tools-example")
    expect(page.locator("#tools-problem")).to_be_hidden()
    expect(page.locator("#tools-count")).to_have_text("get_weather")


def test_one_of_several_choices_is_continued(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    playground = open_page(scripted_stack, tab="chat")
    playground.set("n", 2)
    playground.set("max_tokens", 5)
    send(playground, "Hi")
    answers = [answer_of(playground, index) for index in range(2)]
    playground.page.get_by_label("continue with this one").nth(1).check()
    assert messages_of(playground)[-1]["content"] == answers[1]


def test_tabs_are_reached_by_keyboard_and_address(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    playground = open_page(scripted_stack, key=None)
    page = playground.page
    page.locator("#mode-completion").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#mode-chat")).to_be_focused()
    expect(page.locator("#message")).to_be_visible()
    expect(page.locator("#prompt")).to_be_hidden()
    assert page.evaluate("location.hash") == "#chat"
    expect(page.locator("#skip")).to_have_attribute("href", "#message")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#prompt")).to_be_visible()
    assert page.evaluate("location.hash") == ""


def test_model_without_a_template_is_marked(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    playground = open_page(scripted_stack, key=None, tab="chat")
    expect(playground.page.locator("#chat-notice")).to_be_hidden()
    body = json.dumps({"id": "x", "capabilities": {"chat": False}})
    playground.page.route(
        "**/v1/models/*", lambda route: route.fulfill(status=200, content_type="application/json", body=body)
    )
    playground.open(tab="chat")
    expect(playground.page.locator("#chat-notice")).to_be_visible()


def test_chat_fits_a_narrow_screen(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    long = chat_events(
        {"content": "wide" * 200}, {"tool_calls": [{"id": "c", "function": {"name": "f" * 64, "arguments": "x" * 300}}]}
    )
    playground = open_page(scripted_stack, tab="chat", answer=long, viewport={"width": 320, "height": 800})
    send(playground, "word" * 100)
    page = playground.page
    page.locator("details").evaluate_all("all => all.forEach(each => { each.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


@pytest.mark.parametrize("language", ["curl", "python", "javascript"])
def test_the_code_sends_the_same_request(cpu_stack: RunningStack, open_page: OpenPage, language: str) -> None:
    playground = open_page(cpu_stack, key=None, tab="chat")
    question = 'It\'s "1" + `1` = $x </b> \\n?'
    playground.page.fill("#system", "Terse.")
    playground.page.fill("#message", question)
    playground.set("temperature", 0)
    playground.set("max_tokens", 8)
    playground.set("min_p", "0.5")
    expected = said(cpu_stack, ("system", "Terse."), ("user", question), temperature=0, max_tokens=8, min_p=0.5)
    code = playground.code(language)
    if language == "javascript":
        body = body_in_node(code)
        assert body == json.loads(playground.code("json"))
        return
    command = ["bash", "-c", code] if language == "curl" else [sys.executable, "-c", code]
    environment = {"OPENAI_API_KEY": cpu_stack.api_key, "PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    output = done.stdout.decode()
    if language == "curl":
        chunks = [json.loads(line[6:]) for line in output.splitlines() if line.startswith("data: {")]
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        output = "".join(delta.get("content", "") for delta in deltas)
    assert output == expected


def body_in_node(code: str) -> Any:
    """What the program passes to the client, which is a stand-in here: tests/clients runs the real package."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on PATH; Debian: apt-get install nodejs")
    stand_in = """class OpenAI {
      constructor(options) { if (!options.baseURL.endsWith("/openai/v1")) throw new Error(options.baseURL); }
      chat = { completions: { create: async (body) => {
        console.log(JSON.stringify(body));
        return (async function* () { yield { choices: [{ delta: { content: "" } }] }; })();
      } } };
    }
    """
    program = stand_in + code.replace('import OpenAI from "openai";', "")
    done = subprocess.run([node, "--input-type=module", "-e", program], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout.decode())
