"""The report in a real browser: what it loads, how it looks, and what keys and clicks do."""

import shutil
from contextlib import contextmanager

import pytest
from report_page import TABLE

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium here (Debian's package chromium)"
)
OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(incomplete):
    """The page of a sweep that lacks a job."""
    return incomplete / "new" / "report" / "index.html"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield running
        running.close()


@contextmanager
def opened(browser, path, width=1440, scheme="light"):
    """A page whose ``said`` are messages, errors and requests but for itself and data."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.said = []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.said.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_load_state("networkidle")
    page.said = [s for s in page.said if not s.startswith("data:") and s != path.as_uri()]
    yield page
    page.close()


@pytest.mark.parametrize("width, scheme", [(360, "light"), (1440, "dark")])
def test_it_loads_whole_without_an_error_or_a_request_and_axe_finds_nothing(
    browser, made, width, scheme
):
    with opened(browser, made, width, scheme) as page:
        assert page.said == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
        pictures = page.evaluate(
            "[...document.images].map(i => [i.complete, i.naturalWidth,"
            " i.getBoundingClientRect().width])"
        )
        assert len(pictures) == 12
        for complete, natural, shown in pictures:
            assert complete and natural > 200 and 200 < shown <= width
        axe = pytest.importorskip(
            "axe_playwright_python.sync_playwright", reason="axe-playwright-python is missing"
        )
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        found = axe.Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        assert len(found.response["passes"]) > 20


def values(page):
    """Numbers of the first environment's column in the first table."""
    texts = page.evaluate(
        "[...document.querySelector('table').tBodies[0].rows].map(r => r.cells[1].textContent)"
    )
    return [float(text.split()[0]) for text in texts]


def test_keys_reach_everything_in_its_order_and_tables_sort(browser, made):
    with opened(browser, made, 360) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
        assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowRight")  # a wide table scrolls in itself
        page.wait_for_function("document.activeElement.scrollLeft > 0")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Algorithm"
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert values(page) == sorted(values(page), reverse=True)
        said = page.locator("[role=status]").text_content()
        assert said == f"{TABLE}: sorted by A, descending"
        page.keyboard.press("Space")
        assert values(page) == sorted(values(page))
