"""The report in a real browser: what it loads, how it looks, and what keys and clicks do."""

import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import report_page

from domainbed_carft import cli

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
WIDTHS = (360, 1440)
SCHEMES = ("light", "dark")
TABLE = "PACS; training-domain validation set"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The page of a sweep that lacks a job."""
    folder = tmp_path_factory.mktemp("browser")
    report_page.write_ours(folder / "sweep")
    shutil.rmtree(folder / "sweep" / "PACS-CLIPFineTune-1-1")
    words = ["report", str(folder / "sweep"), "-o", str(folder / "report"), "--no-examples"]
    assert cli.main(words) == 0
    return folder / "report" / "index.html"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield running
        running.close()


@contextmanager
def opened(browser, path, width=1440, scheme="light", **more):
    """A page whose ``said`` are messages, errors and requests but for itself and data."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, **more)
    page.said = []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.said.append(request.url))
    page.goto(Path(path).as_uri())
    page.wait_for_load_state("networkidle")
    page.said = [s for s in page.said if not s.startswith("data:") and s != Path(path).as_uri()]
    yield page
    page.close()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_loads_whole_without_an_error_or_a_request(browser, made, width, scheme):
    with opened(browser, made, width, scheme) as page:
        assert page.said == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
        pictures = page.evaluate(
            "[...document.images].map(i => [i.complete, i.naturalWidth, i.currentSrc === i.src,"
            " i.getBoundingClientRect().width])"
        )
        assert len(pictures) == 12
        for complete, natural, is_light, shown in pictures:
            assert complete and natural > 200
            assert is_light == (scheme == "light")
            assert 200 < shown <= width
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background))) > 380) == (scheme == "light")


def column(page, number):
    """Texts of a column of the first table."""
    return page.evaluate(
        "n => [...document.querySelector('table').tBodies[0].rows]"
        ".map(r => r.cells[n].textContent.trim())",
        number,
    )


def order(page):
    return page.evaluate(
        "[...document.querySelectorAll('table')[0].tHead.rows[0].cells].map(c => c.ariaSort)"
    )


def test_tables_sort_by_click(browser, made):
    with opened(browser, made) as page:
        before = column(page, 0)
        button = page.get_by_role("button", name="A", exact=True).first
        button.click()
        values = [float(text.split()[0]) for text in column(page, 1)]
        assert values == sorted(values, reverse=True)
        assert order(page) == [None, "descending", None, None, None, None]
        said = page.locator("[role=status]").text_content()
        assert said == f"{TABLE}: sorted by A, descending"
        button.click()
        values = [float(text.split()[0]) for text in column(page, 1)]
        assert values == sorted(values)
        page.get_by_role("button", name="Algorithm", exact=True).first.click()
        assert column(page, 0) == sorted(before)
        assert order(page) == ["ascending", None, None, None, None, None]


def test_keys_reach_everything_in_its_order(browser, made):
    with opened(browser, made) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
        assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        page.keyboard.press("Tab")
        region = page.evaluate("[document.activeElement.role, document.activeElement.tagName]")
        assert region == ["region", "DIV"]
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Algorithm"
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
        assert float(outline.removesuffix("px")) >= 2
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        values = [float(text.split()[0]) for text in column(page, 1)]
        assert values == sorted(values, reverse=True)
        page.keyboard.press("Space")
        assert [float(text.split()[0]) for text in column(page, 1)] == sorted(values)


def test_wide_tables_scroll_in_themselves(browser, made):
    with opened(browser, made, 360) as page:
        region = page.locator(".wide").first
        sizes = region.evaluate("e => [e.scrollWidth, e.clientWidth]")
        assert sizes[0] > sizes[1]
        region.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("document.querySelector('.wide').scrollLeft > 0")


def test_without_scripts_the_tables_are_there(browser, made):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(made.as_uri())
    assert page.locator("table").first.locator("tbody tr").count() == 3
    assert page.locator("th button").count() == 0
    context.close()


def test_a_value_that_is_not_there_comes_last(browser, tmp_path, monkeypatch):
    report_page.leave_undrawn(monkeypatch)
    report_page.write_ours(tmp_path / "sweep", trials=1)
    shutil.rmtree(tmp_path / "sweep" / "PACS-CARFT-0-0")
    words = ["report", str(tmp_path / "sweep"), "-o", str(tmp_path / "report"), "--no-examples"]
    assert cli.main(words) == 0
    with opened(browser, tmp_path / "report" / "index.html") as page:
        button = page.get_by_role("button", name="A", exact=True).first
        for _ in range(2):
            button.click()
            assert column(page, 1)[-1].startswith("X") and column(page, 0)[-1] == "CARFT"


CONTRAST = """() => {
  const colour = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const found = colour(getComputedStyle(e).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || element.closest("script, style")) continue;
    const [a, b] = [colour(getComputedStyle(element).color), behind(element)].map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([ratio, walker.currentNode.textContent.trim().slice(0, 40)]);
  }
  return found.sort((x, y) => x[0] - y[0]);
}"""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_text_stands_out_from_what_is_behind_it(browser, made, scheme):
    """By 4.5 to 1, as WCAG 2 asks at its level AA."""
    with opened(browser, made, scheme=scheme) as page:
        found = page.evaluate(CONTRAST)
        assert len(found) > 100
        assert found[0][0] >= 4.5, found[0]


@pytest.mark.parametrize("width, scheme", list(zip(WIDTHS, SCHEMES)))
def test_axe_finds_nothing(browser, made, width, scheme):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    with opened(browser, made, width, scheme) as page:
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        found = axe.Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        assert len(found.response["passes"]) > 20


def test_letters_of_figures_can_be_read_on_a_phone(browser, made):
    """None is smaller than 9 px where the page is 360 px wide."""
    with opened(browser, made, 360) as page:
        scale = page.evaluate(
            "[...document.images].map(i => i.getBoundingClientRect().width / i.naturalWidth)"
        )
    for share, path in zip(scale, sorted((made.parent / "figures").glob("*.svg")), strict=True):
        text = path.read_text(encoding="utf-8")
        sizes = [float(size) for size in re.findall(r"font(?:-size)?: (?:\w+ )*([\d.]+)px", text)]
        # A user unit is a point, of which 72 are an inch: 4/3 px.
        assert sizes and min(sizes) * share * 4 / 3 >= 9, path.name
