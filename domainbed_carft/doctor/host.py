"""Which domainbed a job would meet, what works of it, and what the plugin made of it."""

from __future__ import annotations

import importlib
import os
import subprocess
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from domainbed_carft.doctor.findings import Facts
from domainbed_carft.errors import CarftWarning

# What our algorithms need of a host, and most hosts' training scripts import.
HOST_MODULES = (
    "domainbed",
    "domainbed.algorithms",
    "domainbed.hparams_registry",
    "domainbed.datasets",
)

PATIENCE = 30.0  # seconds for a command that should take none


def look_at_domainbed() -> Facts:
    """Which domainbed is found, whose it is, what of it fails to import, what our plugin says."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        failures = {name: why for name in HOST_MODULES if (why := try_import(name))}
    messages = [str(w.message) for w in caught if issubclass(w.category, CarftWarning)]
    path = _host_folder()
    return {
        "path": path,
        "ours": None if path is None else _is_ours(path),
        "commit": None,
        "modified": None,
        "failures": failures,
        "warnings": messages,
        **({} if path is None else {**_git(path), **_scripts(path)}),
    }


def look_at_algorithms() -> Facts:
    """Name of each of our algorithms -> the module of the class it stands for, None if none."""
    from domainbed_carft.method.hparams import ALGORITHMS

    host = importlib.import_module("domainbed.algorithms")

    def module_of(name: str) -> str | None:
        try:
            return str(host.get_algorithm_class(name).__module__)
        except Exception:  # upstream raises NotImplementedError, forks a KeyError
            return None

    return {name: module_of(name) for name in ALGORITHMS}


def try_import(name: str) -> Facts | None:
    """Import the module ``name``; if that fails, why."""
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        top = name.partition(".")[0]
        return {**failure(error), "module": name, "path": _place(top)}
    return None


def failure(error: BaseException) -> Facts:
    """An error in one line, and the module that was not found if that was it."""
    message = " ".join(str(error).split())
    if not isinstance(error, ImportError) or not message:
        message = f"{type(error).__name__}: {message}"
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    return {"error": message, "missing": missing}


def _place(name: str) -> str | None:
    """The folder of a top-level package or the file of a top-level module, None if not found."""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    return next(iter(spec.submodule_search_locations or ()), spec.origin)


def _host_folder() -> str | None:
    """The folder of domainbed: of those of a namespace package, the one that has algorithms."""
    spec = find_spec("domainbed")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    whole = [
        f for f in folders if any(Path(f, n).exists() for n in ("algorithms.py", "algorithms"))
    ]
    found = next(iter(whole or folders), spec.origin if spec else None)
    return None if found is None else os.path.abspath(found)


def _is_ours(path: str) -> bool:
    from domainbed_carft.plugin import finder

    return any(os.path.exists(f) and os.path.samefile(f, path) for f in finder.harness_folders())


def _scripts(path: str) -> Facts:
    """Which training scripts a host has, and the file in which it lists what it needs."""
    folder = Path(path)
    scripts = [*folder.glob("scripts/train*.py"), *folder.parent.glob("train*.py")]
    lists = [f for f in (folder, folder.parent) if (f / "requirements.txt").is_file()]
    return {
        "train": (folder / "scripts" / "train.py").is_file(),
        "scripts": sorted(map(str, scripts)),
        "requirements": str(lists[0] / "requirements.txt") if lists else None,
    }


def _git(path: str) -> Facts:
    """The commit, if git tracks this very folder: an environment may lie inside another project."""
    if not os.path.isdir(path) or not _git_says(path, "ls-files", "--", "."):
        return {}
    commit = _git_says(path, "rev-parse", "--short", "HEAD")
    # Without the files that git does not know: Python has just left its __pycache__ there.
    changes = _git_says(path, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return {"commit": commit, "modified": bool(changes)}


def _git_says(path: str, *arguments: str) -> str | None:
    """What git prints, None where there is no git, no work tree or nothing to print."""
    # A look must not write the index.
    return said(["git", "--no-optional-locks", "-C", path, *arguments])


def said(command: Sequence[str]) -> str | None:
    """What a command prints, None if it cannot be started, fails or prints nothing."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.strip() or None) if done.returncode == 0 else None
