"""The report and the documentation site in chromium: accessibility, layout, loaded files."""

import functools
import http.server
import shutil
import threading

import pytest
from fake_checkout import REPO, run_python
from report_page import TABLE

EXECUTABLE = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
WIDTHS = (1440, 390)
SITE_PAGES = (
    "index.html",
    "tutorial.html",
    "statistics.html",
    "methods/carft.html",
    "reference/hyperparameters.html",
    "reference/commands.html",
    "reference/api.html",
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(EXECUTABLE is None, reason="needs Debian's package chromium"),
]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=EXECUTABLE, args=OPTIONS)
        yield running
        running.close()


def open_page(browser, address, width):
    """Open a page; return it with its console messages, errors and requested addresses."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    messages = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: messages.append(request.url))
    page.goto(address)
    page.wait_for_load_state("networkidle")
    return page, messages


def violations(page, region=None):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    results = axe.Axe().run(page, context=region).response
    return [
        (violation["id"], [node["target"] for node in violation["nodes"]][:5])
        for violation in results["violations"]
        if violation["impact"] in ("serious", "critical")
    ]


# The report


@pytest.fixture(scope="module")
def index(incomplete):
    return (incomplete / "new" / "report" / "index.html").as_uri()


@pytest.mark.parametrize("width", WIDTHS)
def test_report_is_accessible_and_loads_no_other_files(browser, index, width):
    page, messages = open_page(browser, index, width)
    assert [message for message in messages if not message.startswith("data:")] == [index]
    assert page.evaluate("document.documentElement.scrollWidth") == width

    widths = page.evaluate("[...document.querySelectorAll('figure img')].map(i => i.naturalWidth)")
    assert len(widths) == 16 and min(widths) > 200
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert violations(page) == []


def test_report_can_be_skipped_and_sorted_by_keyboard(browser, index):
    page, _ = open_page(browser, index, 390)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"

    page.get_by_role("button", name="A", exact=True).first.focus()
    for key, order in (("Enter", "descending"), ("Space", "ascending")):
        page.keyboard.press(key)
        assert page.locator("[role=status]").text_content() == f"{TABLE}: sorted by A, {order}"
        column = (
            "[...document.querySelector('table').tBodies[0].rows].map(r => r.cells[1].innerText)"
        )
        values = [float(text.split()[0]) for text in page.evaluate(column)]
        assert values == sorted(values, reverse=order == "descending")


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site like `make docs`, serve it locally, and return its address."""
    pytest.importorskip("material", reason="the extra docs is not installed (make docs)")
    folder = tmp_path_factory.mktemp("site") / "site"
    words = ["-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    done = run_python(*words, cwd=REPO, NO_MKDOCS_2_WARNING="1")
    assert done.returncode == 0, done.stderr

    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("path", SITE_PAGES)
def test_site_is_accessible_fits_the_screen_and_loads_no_other_sites(browser, site, path, width):
    page, messages = open_page(browser, site + path, width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    local = (site, "data:", "blob:")
    assert [message for message in messages if not message.startswith(local)] == []
    assert violations(page, ".md-content") == []
    page.close()
