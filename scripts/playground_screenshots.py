"""Takes the screenshots of the playground in README.md from a running stack.

    python scripts/playground_screenshots.py http://127.0.0.1:9000 "$(cat .run/api-key)"

Needs playwright (a dev dependency) and a Chromium on PATH.
"""

from __future__ import annotations

import base64
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

DOCS = Path(__file__).parents[1] / "docs"
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 860}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
SCREENSHOTS: dict[str, dict[str, Any]] = {
    "playground-desktop": DESKTOP,
    "playground-dark": {**DESKTOP, "color_scheme": "dark"},
    "playground-phone": PHONE,
}
CHAT_SCREENSHOTS: dict[str, dict[str, Any]] = {"playground-chat": DESKTOP, "playground-chat-phone": PHONE}
MESSAGES = ("What is the capital of France?", "And what is it known for?")
TIMEOUT_MS = 120_000


def main(url: str, key: str) -> None:
    """Writes every screenshot to docs/."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, options in SCREENSHOTS.items():
            page = completed(browser, url, key, options)
            if options is PHONE:
                page.locator("#choices").scroll_into_view_if_needed()
                page.evaluate("scrollTo(0, document.querySelector('.prompt-panel').offsetTop - 12)")
            page.locator(".token").nth(9).click()
            take(page, name)
        for name, options in CHAT_SCREENSHOTS.items():
            page = chatted(browser, url, key, options)
            page.evaluate("scrollTo(0, document.querySelector('#turns').offsetTop - 60)" if options is PHONE else "0")
            page.locator(".token").nth(5).click()
            take(page, name)
        browser.close()


def take(page: Page, name: str) -> None:
    """Writes WebP by Chromium: playwright's own screenshots are PNG or JPEG."""
    parameters = {"format": "webp", "quality": 80}
    screenshot = page.context.new_cdp_session(page).send("Page.captureScreenshot", parameters)
    (DOCS / f"{name}.webp").write_bytes(base64.b64decode(screenshot["data"]))


def chatted(browser: Browser, url: str, key: str, options: dict[str, Any]) -> Page:
    """Returns the page after a conversation."""
    page = browser.new_context(**options).new_page()
    with page.expect_response(re.compile(r"/models/")):
        page.goto(f"{url}/#chat&key={key}")
    page.locator("#field-max_tokens").evaluate("field => { field.value = 60 }")
    page.locator("#field-temperature").evaluate("field => { field.value = 0 }")
    for message in MESSAGES:
        page.fill("#message", message)
        page.keyboard.press("Control+Enter")
        expect(page.locator("#run")).to_be_disabled()
        expect(page.locator("#status")).to_contain_text("Done", timeout=TIMEOUT_MS)
    return page


def completed(browser: Browser, url: str, key: str, options: dict[str, Any]) -> Page:
    """Returns the page after a completion."""
    page = browser.new_context(**options).new_page()
    with page.expect_response(re.compile(r"/models/")):
        page.goto(f"{url}/#key={key}")
    page.locator("#field-max_tokens").evaluate("field => { field.closest('details').open = true; field.value = 80 }")
    page.locator("#field-seed").evaluate("field => { field.value = 7 }")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#status")).to_contain_text("Done", timeout=TIMEOUT_MS)
    if options is PHONE:
        page.locator("details").evaluate_all("all => all.forEach(item => { item.open = false })")
    return page


if __name__ == "__main__":
    main(*sys.argv[1:])
