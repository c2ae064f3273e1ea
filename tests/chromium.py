"""Debian's chromium, for the tests that open a page in a browser; they skip without one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

EXECUTABLE = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
is_needed = pytest.mark.skipif(
    EXECUTABLE is None, reason="there is no chromium here (Debian's package chromium)"
)
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def launch() -> Iterator[Any]:
    """A running browser; skips the test if playwright is not installed."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=EXECUTABLE, args=OPTIONS)
        yield browser
        browser.close()


def axe_results(page: Any, context: str | None = None) -> dict[str, Any]:
    """What axe finds on an open page, or in the part of it that a selector names."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is missing"
    )
    results: dict[str, Any] = axe.Axe().run(page, context=context).response
    return results
