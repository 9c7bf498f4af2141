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
            # Chromium writes WebP; playwright's own screenshots are PNG or JPEG.
            screenshot = page.context.new_cdp_session(page).send(
                "Page.captureScreenshot", {"format": "webp", "quality": 80}
            )
            (DOCS / f"{name}.webp").write_bytes(base64.b64decode(screenshot["data"]))
        browser.close()


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
