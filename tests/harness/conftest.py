"""Fixtures for the tests of the harness."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from domainbed import algorithms
from runs_jobs import write_images

from . import fakes

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "upstream"


@pytest.fixture
def golden() -> Callable[[str], Any]:
    """Return a function that reads a golden file: JSON as a value, other files as text."""

    def read(name: str) -> Any:
        text = (GOLDEN / name).read_text(encoding="utf-8")
        return json.loads(text) if name.endswith(".json") else text

    return read


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write noise images: three environments, two classes, five images of each."""
    return write_images(tmp_path_factory.mktemp("data") / "noise", 5)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the fake algorithms in this process, and hide the algorithms of plugins."""
    for name, value in list(vars(algorithms).items()):
        if hasattr(value, "predict") and value is not algorithms.Algorithm:
            monkeypatch.delattr(algorithms, name)
    for fake in fakes.ALL:
        monkeypatch.setattr(algorithms, fake.__name__, fake, raising=False)
    monkeypatch.setattr(algorithms, "ALGORITHMS", [fake.__name__ for fake in fakes.ALL])
