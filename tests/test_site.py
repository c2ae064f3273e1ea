"""The site: built strictly, complete in itself, and usable in a browser on any screen."""

import functools
import http.server
import os
import subprocess
import sys
import threading
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import chromium
import pytest

ROOT = Path(__file__).resolve().parents[1]
LOOKED_AT = (
    "index.html",
    "tutorial.html",
    "collect.html",
    "statistics.html",
    "verified.html",
    "howto/slurm.html",
    "methods/index.html",
    "methods/carft.html",
    "reference/hyperparameters.html",
    "reference/commands.html",
    "reference/api.html",
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built as `make docs` builds it."""
    pytest.importorskip("material", reason="the extra docs is not installed (make docs)")
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    variables = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}

    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    return folder


class Links(HTMLParser):
    """The ids of a page, and where it links to or loads from."""

    def __init__(self, page):
        super().__init__()
        self.ids = set()
        self.targets = []
        self.loaded = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids |= {values[key] for key in ("id", "name") if values.get(key)}
        if tag == "a" and values.get("href"):
            self.targets.append(values["href"])
        self.loaded += [values[key] for key in ("src", "srcset") if values.get(key)]
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preconnect", "preload"):
            self.loaded.append(values["href"])


def test_every_link_and_anchor_leads_somewhere_and_nothing_loads_from_other_hosts(site):
    pages = {path: Links(path) for path in site.rglob("*.html") if path.name != "404.html"}
    broken = defaultdict(list)
    for page, links in pages.items():
        assert not [target for target in links.loaded if urlsplit(target).netloc], page
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme:
                continue
            path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            path = path / "index.html" if path.is_dir() else path
            anchor = unquote(parts.fragment)
            if not path.exists() or (anchor and path in pages and anchor not in pages[path].ids):
                broken[str(page.relative_to(site))].append(target)

    assert len(pages) > 50
    assert "<math " in (site / "methods" / "carft.html").read_text(encoding="utf-8")
    assert broken == {}


@pytest.fixture(scope="module")
def address(site):
    """The address at which a server of this machine has the site."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
    handler.log_message = lambda *words: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with chromium.launch() as running:
        yield running


@chromium.is_needed
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_fit_the_screen_load_only_from_the_site_and_are_accessible(browser, address, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))

    for path in LOOKED_AT:
        page.goto(address + path)
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") == width, path

        violations = chromium.axe_results(page, ".md-content")["violations"]
        grave = [
            violation for violation in violations if violation["impact"] in ("serious", "critical")
        ]
        assert [(v["id"], [n["target"] for n in v["nodes"]][:5]) for v in grave] == [], path

    assert errors == []
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []
    page.close()


@chromium.is_needed
@pytest.mark.parametrize("width", [1280, 390])
def test_the_search_finds_an_option(browser, address, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(address + "index.html")
    if width < 1000:
        page.click("label[for=__search].md-header__button")

    page.click(".md-search__input")
    page.type(".md-search__input", "latex-table")
    first = page.wait_for_selector(".md-search-result__link", timeout=20_000)

    page.wait_for_function("document.querySelectorAll('.md-search-result__link').length > 0")
    links = page.eval_on_selector_all(".md-search-result__link", "a => a.map(x => x.href)")
    assert first and any("collect.html" in link or "latex-table.html" in link for link in links)
    page.close()
