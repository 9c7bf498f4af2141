"""One Chromium for all tests of the playground."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.support.browser import OpenPage, Playground, Served, running_browser


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One Chromium, closed before the next folder: while it is open, Playwright's event loop runs in this thread."""
    with running_browser() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens playgrounds. None may log an error in the console or send a request to any server but its own."""
    opened: list[Playground] = []

    def open_one(stack: Served, *, key: str | None = "", tab: str = "", **options: Any) -> Playground:
        opened.append(Playground(browser, stack, **options))
        return opened[-1].open(key=key, tab=tab)

    yield open_one
    for playground in opened:
        assert playground.complaints == []
        base_url = playground.stack.base_url
        assert [url for url in playground.requests if url != base_url and not url.startswith(f"{base_url}/")] == []
        playground.close()
