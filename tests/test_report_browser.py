"""The report in a real browser: what it loads, how it looks, and what keys and clicks do."""

import chromium
import pytest
from report_page import TABLE

pytestmark = chromium.is_needed

# Width -> colour scheme.
SCREENS = {360: "light", 1440: "dark"}


@pytest.fixture(scope="module")
def index(incomplete):
    """The page of a sweep that lacks a job."""
    return incomplete / "new" / "report" / "index.html"


@pytest.fixture(scope="module")
def browser():
    with chromium.launch() as running:
        yield running


def opened(browser, path, width, scheme):
    """A page whose ``messages`` are messages, errors and requests but for itself and data."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.messages = []
    page.on("console", lambda message: page.messages.append(message.text))
    page.on("pageerror", lambda error: page.messages.append(str(error)))
    page.on("request", lambda request: page.messages.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_load_state("networkidle")
    page.messages = [
        message
        for message in page.messages
        if not message.startswith("data:") and message != path.as_uri()
    ]
    return page


@pytest.fixture(scope="module")
def pages(browser, index):
    """Its width -> a page as a telephone shows it, and one as a dark screen does."""
    return {width: opened(browser, index, width, scheme) for width, scheme in SCREENS.items()}


@pytest.mark.parametrize("width", SCREENS)
def test_the_page_loads_without_errors_or_requests_and_is_accessible(pages, width):
    page = pages[width]
    assert page.messages == []
    assert page.evaluate("document.documentElement.scrollWidth") == width

    pictures = page.evaluate(
        "[...document.querySelectorAll('figure img')].map(i => [i.complete, i.naturalWidth,"
        " i.getBoundingClientRect().width])"
    )
    assert len(pictures) == 16
    for complete, own_width, width_on_page in pictures:
        assert complete and own_width > 200 and 200 < width_on_page <= width

    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    results = chromium.axe_results(page)
    assert results["violations"] == []
    assert len(results["passes"]) > 20


def values(page):
    """Numbers of the first environment's column in the first table."""
    texts = page.evaluate(
        "[...document.querySelector('table').tBodies[0].rows].map(r => r.cells[1].textContent)"
    )
    return [float(text.split()[0]) for text in texts]


def test_keys_reach_all_elements_and_sort_tables(pages):
    page = pages[360]
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"

    page.locator("main section .wide").first.focus()
    page.keyboard.press("ArrowRight")  # a wide table scrolls in itself
    page.wait_for_function("document.activeElement.scrollLeft > 0")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Algorithm"

    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert values(page) == sorted(values(page), reverse=True)

    status = page.locator("[role=status]").text_content()
    assert status == f"{TABLE}: sorted by A, descending"

    page.keyboard.press("Space")
    assert values(page) == sorted(values(page))


def test_a_table_says_that_it_scrolls_only_where_it_does(pages):
    for width, is_hinted in ((360, True), (1440, False)):
        region = pages[width].locator(".wide").first
        hint = region.evaluate("region => getComputedStyle(region, '::before').content")
        assert ("scroll sideways" in hint) == is_hinted


def test_the_legend_stays_in_sight_and_commands_can_be_copied(pages):
    page = pages[1440]
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    button = page.get_by_role("button", name="Copy: Commands of the jobs")
    button.scroll_into_view_if_needed()
    assert page.locator(".legend").bounding_box()["y"] == 0

    page.evaluate(
        "Object.defineProperty(navigator, 'clipboard',"
        " {value: {writeText: text => { window.copied = text; }}})"
    )
    button.click()
    page.wait_for_function("window.copied")
    lines = page.evaluate("window.copied").splitlines()
    assert len(lines) > 20 and all(line.startswith("python -m domainbed") for line in lines)
    assert button.text_content() == "Copied"
