"""Which domainbed a job would meet, what works of it, and what the plugin made of it."""

from __future__ import annotations

import importlib
import os
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from domainbed_carft.doctor import Finding
from domainbed_carft.errors import CarftWarning
from domainbed_carft.plugin import HostFinder, finder

# What our algorithms need of a host, and most hosts' training scripts import.
MODULES = ("", ".algorithms", ".hparams_registry", ".datasets")

# Modules that are not called as the distribution that brings them.
DISTRIBUTIONS = {
    "pkg_resources": "'setuptools<82'",
    "clip": "clip-anytorch",
    "PIL": "pillow",
    "cv2": "opencv-python",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "yaml": "pyyaml",
}
ABOVE = "fix what is above first"
EXTENSION = (
    "fix what the warning names; python -c 'import domainbed_carft, domainbed.algorithms, "
    "domainbed.datasets, domainbed.hparams_registry; domainbed_carft.register()' shows where it is"
)


def domainbed() -> Iterator[Finding]:
    """Which domainbed is found, whose it is, what of it cannot be imported."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        failures = {m: error for m in MODULES if (error := imported(f"domainbed{m}"))}
    path = _folder()
    if path is None:
        remedy = "activate the hook, which brings a harness; or start from your checkout's root"
        yield Finding("domainbed", "problem", f"none found from {os.getcwd()}", remedy)
        return
    yield _host(path, bool(failures))
    told: set[str | None] = set()
    for name, error in failures.items():
        # A part of domainbed that is missing is missed by several.
        cause = error.name if isinstance(error, ModuleNotFoundError) else words(error)
        if cause not in told:
            told.add(cause)
            shows = f"python -c 'import domainbed{name}' shows where it fails"
            inside = cause is None or cause.startswith("domainbed")
            remedy = shows if inside else missing(error) or shows
            found = f"import of domainbed{name} fails: {words(error)}"
            yield Finding(f"domainbed{name}", "problem", found, remedy)
    for warning in caught:
        if issubclass(warning.category, CarftWarning):
            yield Finding("plugin", "note", str(warning.message), EXTENSION)


def _host(path: Path, fails: bool) -> Finding:
    """Whose domainbed it is, in which commit, and how jobs are started with it."""
    folders = [folder for folder in finder.harness_folders() if os.path.exists(folder)]
    ours = any(os.path.samefile(folder, path) for folder in folders)
    found = f"{'ours, the harness' if ours else 'foreign'}: {path}{_commit(path)}"
    shadowed, python = Path.cwd() / "domainbed", shutil.which("python")
    if getattr(sys.flags, "safe_path", False) and shadowed.is_dir():
        found += f"; {shadowed} is not looked at, since PYTHONSAFEPATH is set"
        return Finding("domainbed", "note", found, "unset PYTHONSAFEPATH if you mean that one")
    if not fails and not (path / "scripts" / "train.py").is_file():
        scripts = [*path.glob("scripts/train*.py"), *path.parent.glob("train*.py")]
        own = ", ".join(map(str, scripts)) or "SWAD and MIRO have train_all.py"
        found += "; it has no domainbed.scripts.train"
        return Finding("domainbed", "note", found, f"start training as that checkout does ({own})")
    if not ours and (
        not python or said(python, "-c", "import sys; print(sys.prefix)") != sys.prefix
    ):
        found += f"; its sweeps call 'python', which here is {python or 'nothing'}"
        activate = shlex.quote(os.path.join(os.path.dirname(sys.executable), "activate"))
        remedy = f"source {activate}, or start sweeps with --command_launcher pool"
        return Finding("domainbed", "note", found, remedy)
    return Finding("domainbed", "ok", found)


def algorithms() -> Iterator[Finding]:
    """Whether the names of our algorithms stand for our classes."""
    from domainbed_carft.method.hparams import ALGORITHMS

    host = importlib.import_module("domainbed.algorithms")
    modules = {}
    for name in ALGORITHMS:
        try:
            modules[name] = str(host.get_algorithm_class(name).__module__)
        except Exception:  # upstream raises NotImplementedError, forks a KeyError
            modules[name] = ""
    absent = ", ".join(name for name, module in modules.items() if not module)
    others = [name for name, module in modules.items() if not module.startswith("domainbed_carft")]
    if absent and not is_hooked():
        yield Finding("algorithms", "note", "not there without the hook", ABOVE)
    elif absent:
        yield Finding("algorithms", "problem", f"domainbed does not know {absent}", EXTENSION)
    elif others:
        # Whoever asks for CARFT would train something else without knowing.
        found = f"{', '.join(others)} will be domainbed's own, not ours"
        remedy = f"rename {', '.join(others)} in that domainbed to get ours"
        yield Finding("algorithms", "problem" if "CARFT" in others else "note", found, remedy)
    else:
        yield Finding("algorithms", "ok", ", ".join(modules))


def is_hooked() -> bool:
    """Whether the hook waits for domainbed in this interpreter."""
    return any(isinstance(finder, HostFinder) for finder in sys.meta_path)


def imported(name: str) -> BaseException | None:
    """Import a module; if that fails, why."""
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        return error
    return None


def words(error: BaseException) -> str:
    """An error in one line."""
    message = " ".join(str(error).split())
    kind = "" if isinstance(error, ImportError) and message else f"{type(error).__name__}: "
    return f"{kind}{message}"


def missing(error: BaseException) -> str:
    """How to install the module that was not found, if that was it; else ""."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return ""
    top = error.name.partition(".")[0]
    return f"pip install {DISTRIBUTIONS.get(top, top)}"


def said(*command: str) -> str:
    """What a command prints, "" if it cannot be started or fails."""
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=30, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""


def _folder() -> Path | None:
    """The folder of domainbed: of those of a namespace package, the one that has algorithms."""
    spec = find_spec("domainbed")
    folders = [Path(f).absolute() for f in spec.submodule_search_locations or ()] if spec else []
    whole = [f for f in folders if (f / "algorithms.py").exists() or (f / "algorithms").exists()]
    return next(iter(whole or folders), None)


def _commit(path: Path) -> str:
    """The commit, if git tracks this very folder: an environment may lie inside another project."""
    # A look must not write the index. Files that git does not know do not count as changes.
    git = ("git", "--no-optional-locks", "-C", str(path))
    commit = said(*git, "ls-files", "--", ".") and said(*git, "rev-parse", "--short", "HEAD")
    changed = said(*git, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return f", commit {commit}{' with uncommitted changes' if changed else ''}" if commit else ""
