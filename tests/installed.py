"""Temporary environments that use the dependencies of this one, and pip without an index."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PIP_OPTIONS = ("--no-build-isolation", "--no-deps", "--no-index", "--no-cache-dir", "--quiet")

# The file that adds packages of this environment to another one.
BORROWED = "_borrowed.pth"

# Files of a working tree that are not source.
NOT_SOURCE = shutil.ignore_patterns(
    ".git",
    ".venv",
    ".*_cache",
    "__pycache__",
    "*.egg-info",
    "build",
    "dist",
    "node_modules",
    "*_output",
)


class Environment:
    """A fresh environment without pip, which finds packages of this one last.

    Their folders are added as plain paths, so that their `.pth` files are not processed and no hook
    of this environment is active there.
    """

    def __init__(self, folder: Path) -> None:
        """Use the environment in a folder, and create it if it does not exist."""
        self.python = folder / "bin" / "python"
        self.empty = folder / "an empty folder"
        if not folder.exists():
            command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
            subprocess.run(command, check=True)
            self.empty.mkdir()

        (self.site_packages,) = folder.glob("lib/python3*/site-packages")
        # There are several if this environment uses packages of another one.
        borrowed = [path for path in sys.path if path.endswith("site-packages")]
        (self.site_packages / BORROWED).write_text("".join(f"{path}\n" for path in borrowed))

    def install(self, *requirements: str) -> None:
        """Install with pip: the path of a wheel, or "--editable" and a folder."""
        # Most modules are never imported, so their bytecode is not needed.
        options = [*PIP_OPTIONS, "--no-compile", "--ignore-installed"]
        pip("install", *options, *requirements, python=self.python)

    def run(
        self, *arguments: str, cwd: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run its interpreter, also called `python` in shells, in `cwd` or an empty folder."""
        path = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            [self.python, *arguments],
            cwd=cwd or self.empty,
            env={**clean_variables(), "PATH": path, **variables},
            capture_output=True,
            text=True,
            timeout=900,
        )

    def files(self) -> set[str]:
        """Return the names in site-packages added by an installation."""
        return {path.name for path in self.site_packages.iterdir()} - {BORROWED}


def clean_variables() -> dict[str, str]:
    """Return the variables of this process, except those of Python, pip and this package."""
    prefixes = ("PYTHON", "DOMAINBED_CARFT", "PIP_")
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


def pip(*arguments: str, python: str | Path = sys.executable) -> None:
    """Run pip for an interpreter, and raise AssertionError with its output if it fails."""
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, env=clean_variables(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
