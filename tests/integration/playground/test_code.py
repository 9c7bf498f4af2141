"""The curl and Python code of the playground sends the same request as the page."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playwright.sync_api import expect

from tests.support.browser import GREEDY, OpenPage
from tests.support.stack import RunningStack

pytestmark = pytest.mark.triton

PROMPT = 'It\'s "Once" upon a $time `in` <b>Köln</b>\\n!\n'


@pytest.mark.parametrize("language", ["curl", "python"])
@pytest.mark.parametrize("stream", [True, False])
def test_the_code_sends_the_same_request(
    cpu_stack: RunningStack, open_page: OpenPage, language: str, stream: bool
) -> None:
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


# All that a JSON body can contain, unpaired surrogates included.
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


def test_every_value_is_quoted_in_the_code(scripted_stack: RunningStack, open_page: OpenPage) -> None:
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
    """The arguments that bash passes to curl."""
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
    """Equality as JSON: numbers are doubles, and the order of members is ignored."""
    one, other = (json.loads(json.dumps(value), parse_int=float) for value in (found, sent))
    return bool(one == other)
