"""The layout of the playground: width, touch targets, contrast."""

from __future__ import annotations

import pytest

from tests.support.browser import PHONE, SOME_TOKENS, TOOL_CALL, OpenPage
from tests.support.stack import RunningStack

pytestmark = pytest.mark.triton


@pytest.mark.parametrize("width", [320, 1280])
def test_the_page_fits_its_width(scripted_stack: RunningStack, open_page: OpenPage, width: int) -> None:
    playground = open_page(scripted_stack, viewport={"width": width, "height": 800})
    playground.set("max_tokens", "32")
    playground.run()
    page = playground.page
    page.locator("details").evaluate_all("all => all.forEach(each => { each.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".token").nth(5).scroll_into_view_if_needed()  # a scroll after the click would hide the details
    page.locator(".token").nth(5).click()
    box = page.locator("#tip").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width


@pytest.mark.parametrize("tab", ["", "chat"])
def test_touch_targets_are_at_least_44_pixels_high(scripted_stack: RunningStack, open_page: OpenPage, tab: str) -> None:
    playground = open_page(scripted_stack, tab=tab, answer=TOOL_CALL if tab else None, **PHONE)
    page = playground.page
    if tab:
        playground.run()
        page.locator(".turn.assistant").wait_for()
    heights = page.locator(":is(button, select, summary):visible").evaluate_all(
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


@pytest.mark.parametrize("tab", ["", "chat"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(scripted_stack: RunningStack, open_page: OpenPage, scheme: str, tab: str) -> None:
    playground = open_page(scripted_stack, tab=tab, color_scheme=scheme, answer=TOOL_CALL if tab else SOME_TOKENS)
    playground.run()
    page = playground.page
    page.locator("details").evaluate_all("all => all.forEach(each => { each.open = true })")
    assert page.evaluate(CONTRAST) == []
