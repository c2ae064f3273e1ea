"""Throwaway environments that borrow the dependencies of this one, and pip without an index."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PIP_OPTIONS = ("--no-build-isolation", "--no-deps", "--no-index", "--no-cache-dir", "--quiet")

# The file that adds this environment's packages to another one.
BORROWED = "_borrowed.pth"

# What a working tree holds that is not the project's source.
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
    """A fresh environment without pip, with this one's packages as last plain paths.

    A plain path line does not process the `.pth` files of the folder it names, so nothing that
    is installed here is hooked there.
    """

    def __init__(self, folder: Path) -> None:
        """The environment in this folder, made if it is not there."""
        self.python = folder / "bin" / "python"
        self.empty = folder / "an empty folder"
        if not folder.exists():
            command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
            subprocess.run(command, check=True)
            self.empty.mkdir()

        (self.site_packages,) = folder.glob("lib/python3*/site-packages")
        # Several where this environment borrows packages itself.
        borrowed = [path for path in sys.path if path.endswith("site-packages")]
        (self.site_packages / BORROWED).write_text("".join(f"{path}\n" for path in borrowed))

    def install(self, *requirements: str) -> None:
        """Install these with pip: the path of a wheel, or "--editable" and a folder."""
        # Bytecode is written as modules are imported, which most are not.
        options = [*PIP_OPTIONS, "--no-compile", "--ignore-installed"]
        pip("install", *options, *requirements, python=self.python)

    def uninstall(self) -> None:
        """Uninstall our package with pip."""
        pip("uninstall", "--yes", "--quiet", "domainbed-carft", python=self.python)

    def run(
        self, *arguments: str, cwd: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run its interpreter, which is also the shell's `python`, in `cwd` or an empty folder."""
        return subprocess.run(
            [self.python, *arguments],
            cwd=cwd or self.empty,
            env=self._variables(variables),
            capture_output=True,
            text=True,
            timeout=900,
        )

    def _variables(self, added: dict[str, str]) -> dict[str, str]:
        path = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        return {**clean_variables(), "PATH": path, **added}

    def files(self) -> set[str]:
        """The names in its site-packages that an installation put there."""
        return {path.name for path in self.site_packages.iterdir()} - {BORROWED}


def clean_variables() -> dict[str, str]:
    """This process's variables without those of Python, pip and our package."""
    prefixes = ("PYTHON", "DOMAINBED_CARFT", "PIP_")
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


def pip(*arguments: str, python: str | Path = sys.executable) -> None:
    """Run pip for the interpreter `python`; AssertionError with its output if it fails."""
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, env=clean_variables(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
