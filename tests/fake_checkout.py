"""Checkouts of DomainBed and a package without torch, written to a folder for sub-processes.

`write_checkout` writes a checkout in one of these shapes (folders of `tests/checkouts`, written for
this project after the interface of DomainBed and its forks):

- `small`: the parts that the plugin extends, without torch; is imported quickly, and cannot train
- `classic`: DomainBed as published, reduced to training; `usual_calls.py` contains its calls
- `clip`: a fork whose datasets have CLIP's transforms, and whose entry point replaces
  `default_hparams`
- `tables`: a fork that looks up algorithms and their hparams in tables, passes all arguments by
  keyword, and has a base class without a number of domains
- `packages`: a fork whose modules are packages, without `domainbed/__init__.py`, and whose registry
  passes on one generator, like older releases
- `parts`: a base class with attributes for the parts, constructors with more arguments, and a
  `train` that reads `train_acc` and averages the `network`
- `harness`: a copy of the included harness, as a checkout

`write_carft` writes the package with its real plugin, but with other modules that need no torch.
The tests of launchers use `tests/stand_in`, which has a `train` without torch.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
_CHECKOUTS = REPO / "tests" / "checkouts"

# Layers of each shape. Files of later layers replace files of earlier ones.
SHAPES = {
    name: [_CHECKOUTS / layer / "domainbed" for layer in layers]
    for name, layers in {
        "small": ["small"],
        "classic": ["classic"],
        "clip": ["classic", "clip"],
        "tables": ["classic", "tables"],
        "packages": ["classic", "packages"],
        "parts": ["classic", "parts"],
    }.items()
} | {"harness": [REPO / "third_party" / "domainbed"]}

OUR_ALGORITHMS = ["CARFT", "CLIPFineTune", "CLIPLinearProbe", "CLIPZeroShot"]

# The result of default_hparams("CARFT", ...) with the modules below.
OUR_HPARAMS = {"lr": 5e-6, "kl_weight": 1.0, "class_balanced": False}

# Modules of the package that need only the standard library.
REAL_MODULES = (
    "__init__.py",
    "version.py",
    "lazy.py",
    "process_variables.py",
    "errors.py",
    "escaping.py",
    "suggestions.py",
    "wording.py",
    "jobs/facts.py",
    "images/dataset_facts.py",
    "images/dataset_setup.py",
    "datasets/__init__.py",
    "datasets/known_datasets.py",
    "datasets/requested_clip.py",
    "images/plan.py",
    "images/preprocessing.py",
    "images/protocols.py",
)

CARFT = {
    "method/__init__.py": "",
    "jobs/__init__.py": "",
    "jobs/algorithms.py": """
ALGORITHMS = ("CARFT", "CLIPFineTune", "CLIPLinearProbe", "CLIPZeroShot")
""",
    "jobs/own_methods.py": """
def find_files():
    return []
""",
    "method/own_methods.py": "",
    "method/hparams.py": """
import types

CLIP_HEAD = types.SimpleNamespace(name="clip_head")
PINNABLE = ()
""",
    "method/host_lookup.py": """
def is_carft_harness():
    return False
""",
    "method/algorithms.py": """
from domainbed.algorithms import Algorithm
from domainbed_carft.jobs.algorithms import ALGORITHMS

CLASSES = {name: type(name, (Algorithm,), {}) for name in ALGORITHMS}
OWN_METHODS, OWN_PROBLEMS = {}, []
globals().update(CLASSES)

def recorded_hparams(algorithm):
    return dict.fromkeys(hparam_values(algorithm, ""))

def hparam_values(algorithm, dataset, random_seed=None, clip_backbone="", steps=None):
    if random_seed is None:
        return {"lr": 5e-6, "kl_weight": 1.0}
    return {"lr": random_seed, "kl_weight": 2.0}
""",
    "datasets/included.py": """
class EmojiStyles:
    ENVIRONMENTS = ["a", "b", "c"]

class EmojiUnseen:
    ENVIRONMENTS = ["a", "b"]

class EmojiShift:
    ENVIRONMENTS = ["a"]

class ImageNet:
    ENVIRONMENTS = ["train"]

class DTD:
    ENVIRONMENTS = ["train"]

TASKS = {"DTD": DTD}
""",
    "clips/__init__.py": "",
    "images/__init__.py": "",
    "images/transforms.py": """
def PlanTransform(plan):
    return [plan.resize, plan.size, plan.augmentation is not None]
""",
    "data/__init__.py": "",
    "data/verification.py": """
import contextlib

class DataReport:
    data_edition = ""
    problems = differences = ()
    root = None

def report_broken_data(report, hparams):
    return contextlib.nullcontext()

def verify_folder(name, folder):
    return DataReport()
""",
    "launchers.py": 'LAUNCHERS = {"pool": print}\n',
}


def write_files(folder: Path, files: dict[str, str]) -> Path:
    """Write files by their relative paths, and return the folder."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def module_text(module: str, shape: str = "small") -> str:
    """Return the text of a module in a checkout of this shape."""
    paths = [layer / f"{module}.py" for layer in SHAPES[shape]]
    *_, path = (path for path in paths if path.exists())
    return path.read_text()


def write_checkout(
    folder: Path, shape: str = "small", modules: Mapping[str, str] | None = None
) -> Path:
    """Write a checkout of DomainBed, and return its root.

    Args:
        folder: The root of the checkout.
        shape: A shape of SHAPES.
        modules: Text by name of modules that are added or replaced.
    """
    package = folder / "domainbed"
    for layer in SHAPES[shape]:
        # A package replaces the module.
        for path in layer.iterdir():
            if path.is_dir():
                (package / f"{path.name}.py").unlink(missing_ok=True)
        no_bytecode = shutil.ignore_patterns("__pycache__")
        shutil.copytree(layer, package, ignore=no_bytecode, dirs_exist_ok=True)

    if shape == "packages":
        (package / "__init__.py").unlink()

    write_files(package, {f"{module}.py": text for module, text in (modules or {}).items()})
    return folder


def write_carft(folder: Path) -> Path:
    """Write a `domainbed_carft` without torch into a folder; its harness is a small checkout."""
    package = folder / "domainbed_carft"
    no_bytecode = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPO / "domainbed_carft" / "plugin", package / "plugin", ignore=no_bytecode)

    (package / "method").mkdir()
    for name in REAL_MODULES:
        (package / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPO / "domainbed_carft" / name, package / name)

    write_files(package, CARFT)
    write_checkout(package / "harness")
    return folder


def write_start_hook(folder: Path) -> Path:
    """Write a sitecustomize that installs the hook like the `.pth` file of the package."""
    hook = "from domainbed_carft.plugin import install\ninstall()\n"
    return write_files(folder, {"sitecustomize.py": hook})


def run_python(
    *arguments: str,
    cwd: Path,
    path: list[Path] | None = None,
    python: str | Path = sys.executable,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run an interpreter with `path` as PYTHONPATH and additional `variables`.

    It inherits the variables of this process, except variables of Python and this package.
    """
    return subprocess.run(
        [python, *arguments],
        cwd=cwd,
        env=_variables(path, variables),
        capture_output=True,
        text=True,
        timeout=300,
    )


def _variables(path: list[Path] | None, added: dict[str, str]) -> dict[str, str]:
    """Add variables to the variables of this process, except those of Python and this package."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "DOMAINBED_CARFT"))
    }
    python_path = os.pathsep.join(map(str, path or []))
    return {**inherited, "PYTHONPATH": python_path, **added}


class Site:
    """An environment with the package and its start hook, like an installation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.package = folder / "site" / "domainbed_carft"
        write_carft(folder / "site")
        write_start_hook(folder / "site")
        self.empty = folder / "elsewhere"
        self.empty.mkdir()

    def run(
        self,
        *arguments: str,
        cwd: Path | None = None,
        path: tuple[Path, ...] = (),
        **variables: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run the interpreter in `cwd`, by default an empty folder."""
        paths = [self.folder / "site", *path]
        return run_python(*arguments, cwd=cwd or self.empty, path=paths, **variables)

    def train(self, name: str = "CARFT", **options: Any) -> Any:
        """Run the fake `train` of the domainbed that is found, and return its report."""
        return self.json("-m", "domainbed.scripts.train", name, **options)

    def json(self, *arguments: str, **options: Any) -> Any:
        """Run the interpreter, assert success and an empty stderr, and return the printed JSON."""
        done = self.run(*arguments, **options)
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)
