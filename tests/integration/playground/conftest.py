"""One Chromium for all tests of the playground."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.support.browser import OpenPage, Playground, running_browser
from tests.support.stack import RunningStack


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One Chromium, closed before the next folder: while it is open, Playwright's event loop runs in this thread."""
    with running_browser() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens playgrounds. None may log an error in the console or send a request to any server but its own."""
    opened: list[Playground] = []

    def open_one(stack: RunningStack, *, key: str | None = "", **options: Any) -> Playground:
        opened.append(Playground(browser, stack, **options))
        return opened[-1].open(key=key)

    yield open_one
    for playground in opened:
        assert playground.complaints == []
        assert {url for url in playground.requests if not url.startswith(f"{playground.stack.base_url}/")} == set()
        playground.close()
