"""Fixtures of the harness's tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import warm
from domainbed import algorithms

from . import fakes

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "upstream"
PLUGIN = Path(__file__).resolve().parent / "plugin"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def golden() -> Callable[[str], Any]:
    """Reads a golden file: JSON as its value, anything else as text."""

    def read(name: str) -> Any:
        text = (GOLDEN / name).read_text(encoding="utf-8")
        return json.loads(text) if name.endswith(".json") else text

    return read


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers the fake algorithms in this process, and hides what any plugin has added."""
    for name, value in list(vars(algorithms).items()):
        if hasattr(value, "predict") and value is not algorithms.Algorithm:
            monkeypatch.delattr(algorithms, name)
    for fake in fakes.ALL:
        monkeypatch.setattr(algorithms, fake.__name__, fake, raising=False)
    monkeypatch.setattr(algorithms, "ALGORITHMS", [fake.__name__ for fake in fakes.ALL])


@pytest.fixture
def command(tmp_path: Path) -> Run:
    """Runs `python -m domainbed.scripts.NAME ARGUMENTS` in an empty folder, fakes registered."""
    inherited = os.environ.get("PYTHONPATH")
    search_path = os.pathsep.join([str(PLUGIN), *([inherited] if inherited else [])])

    def run(name: str, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": search_path}
        words = ["-m", f"domainbed.scripts.{name}", *arguments]
        if not more:
            return warm.run(*words, cwd=tmp_path, env=env)
        started = [sys.executable, *words]
        return subprocess.run(
            started, cwd=tmp_path, env=env, capture_output=True, text=True, **more
        )

    return run
