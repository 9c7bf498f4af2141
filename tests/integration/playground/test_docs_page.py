"""The page of the API in a browser: its policy allows the page's own style, and nothing else."""

from __future__ import annotations

import pytest

from tests.support.browser import OpenPage
from tests.support.stack import RunningStack

pytestmark = pytest.mark.triton


def test_the_docs_page_has_its_style_and_runs_no_script(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    """A violation of the policy would be an error in the console, which `open_page` does not allow."""
    page = open_page(scripted_stack, key=None).page
    page.goto(f"{scripted_stack.base_url}/docs")
    assert page.locator("pre").first.evaluate("each => getComputedStyle(each).padding") == "16px"
    assert page.evaluate("document.scripts.length") == 0


def test_the_docs_page_does_not_run_an_added_script(scripted_stack: RunningStack, open_page: OpenPage) -> None:
    playground = open_page(scripted_stack, key=None)
    playground.page.goto(f"{scripted_stack.base_url}/docs")
    playground.page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.hasRun = true";
          document.body.append(script);
        }"""
    )
    assert playground.page.evaluate("window.hasRun") is None
    assert any("Content Security Policy" in complaint for complaint in playground.complaints)
    playground.complaints.clear()
