"""Small stand-ins for the plugin's two sides, written to a folder and used in sub-processes.

`write_checkout` makes a DomainBed checkout with the parts of its contract that the plugin meets;
`write_carft` our package with its real plugin but with modules that need no torch. The real ones
meet the real harness wherever a test trains, and in `test_doctor`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent

OUR_ALGORITHMS = ["CARFT", "CLIPFineTune", "CLIPLinearProbe", "CLIPZeroShot"]

# What default_hparams("CARFT", ...) returns if both sides are the stand-ins below.
OUR_HPARAMS = {"lr": 5e-6, "kl_weight": 1.0, "class_balanced": False}

HOST = {
    "__init__.py": "",
    "algorithms.py": """
ALGORITHMS = ["ERM"]

class Algorithm:
    pass

class ERM(Algorithm):
    pass

def get_algorithm_class(name):
    if name not in globals():
        raise NotImplementedError(name)
    return globals()[name]
""",
    "hparams_registry.py": """
def _hparams(algorithm, dataset, random_seed):
    return {"lr": (0.001, random_seed / 7), "class_balanced": (False, False)}

def default_hparams(algorithm, dataset):
    return {name: pair[0] for name, pair in _hparams(algorithm, dataset, 0).items()}

def random_hparams(algorithm, dataset, seed):
    return {name: pair[1] for name, pair in _hparams(algorithm, dataset, seed).items()}
""",
    "datasets.py": """
import os

DATASETS = ["Pets"]
NUM_ENVIRONMENTS = {"Pets": 2}

class Normalize:
    mean, std = [0.5, 0.25, 0.0], [2.0, 1.0, 1.0]

class Compose:
    transforms = [str, Normalize()]

class Folder:
    transform = Compose()

    def __init__(self, root):
        self.root = root
        self.classes = sorted(os.listdir(root))

class MultipleDomainDataset:
    ENVIRONMENTS = None

class MultipleEnvironmentImageFolder(MultipleDomainDataset):
    def __init__(self, root, test_envs, augment, hparams):
        names = sorted(os.listdir(root))
        self.input_shape = (3, 224, 224)
        self.datasets = [Folder(os.path.join(root, name)) for name in names]

class Pets(MultipleEnvironmentImageFolder):
    ENVIRONMENTS = ["A", "B"]

    def __init__(self, root, test_envs, hparams):
        super().__init__(root, test_envs, True, hparams=hparams)
""",
    "command_launchers.py": 'REGISTRY = {"local": print}\n',
    "scripts/__init__.py": "",
    "scripts/train.py": """
import json
import sys
from domainbed import algorithms, datasets, hparams_registry

if __name__ == "__main__":
    name = sys.argv[1]
    print(json.dumps({
        "file": algorithms.__file__,
        "class": algorithms.get_algorithm_class(name).__name__,
        "algorithms": algorithms.ALGORITHMS,
        "datasets": datasets.DATASETS,
        "environments": datasets.NUM_ENVIRONMENTS,
        "hparams": hparams_registry.default_hparams(name, "Pets"),
    }))
""",
}

# Modules of the package that need nothing but the standard library.
REAL_MODULES = (
    "__init__.py",
    "version.py",
    "errors.py",
    "text.py",
    "method/dataset_facts.py",
    "pictures/plan.py",
    "pictures/preprocessing.py",
    "pictures/protocols.py",
)

CARFT = {
    "method/__init__.py": "",
    "method/hparams.py": """
ALGORITHMS = ("CARFT", "CLIPFineTune", "CLIPLinearProbe", "CLIPZeroShot")

def overlay(algorithm, dataset, random_seed):
    return {"lr": (5e-6, random_seed), "kl_weight": (1.0, 2.0)}

def implied(algorithm, dataset, overrides, random_seed):
    return {}
""",
    "method/host_lookup.py": """
def in_our_harness():
    return False
""",
    "method/algorithms.py": """
from domainbed.algorithms import Algorithm
from domainbed_carft.method.hparams import ALGORITHMS

globals().update({name: type(name, (Algorithm,), {}) for name in ALGORITHMS})
""",
    "plugin/data_sets.py": """
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
    "pictures/__init__.py": "",
    "pictures/transforms.py": """
def PlanTransform(plan):
    return [plan.resize, plan.size, plan.augmentation is not None]
""",
    "pictures/host_transforms.py": """
def is_upstream(transform):
    return False

def normalisation_of(transform):
    if isinstance(transform, list):
        return None
    last = transform.transforms[-1]
    return tuple(last.mean), tuple(last.std)
""",
    "data/__init__.py": "",
    "data/verify.py": """
class Report:
    data_edition = ""
    problems = differences = ()
    root = None

def verify_folder(name, folder):
    return Report()
""",
    "launchers.py": 'LAUNCHERS = {"pool": print}\n',
}


def write_files(folder: Path, files: dict[str, str]) -> Path:
    """Write `files`, by their relative paths, and return `folder`."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def write_checkout(folder: Path, **replaced_modules: str) -> Path:
    """Write a checkout of DomainBed, some modules replaced; return its root, `folder`."""
    replaced_files = {f"{module}.py": text for module, text in replaced_modules.items()}
    write_files(folder / "domainbed", HOST | replaced_files)
    return folder


def write_carft(folder: Path) -> Path:
    """Write a `domainbed_carft` without torch, its harness a checkout named so, into `folder`."""
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
    """Write a sitecustomize that does at interpreter start what our `.pth` line does."""
    hook = "from domainbed_carft.plugin import install\ninstall()\n"
    return write_files(folder, {"sitecustomize.py": hook})


def run_python(
    *arguments: str,
    cwd: Path,
    path: list[Path] | None = None,
    python: str | Path = sys.executable,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run an interpreter with `path` as PYTHONPATH and these `variables`.

    It inherits this process's variables, except those of Python and of our package.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "DOMAINBED_CARFT"))
    }
    python_path = os.pathsep.join(map(str, path or []))

    return subprocess.run(
        [python, *arguments],
        cwd=cwd,
        env={**inherited, "PYTHONPATH": python_path, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


class Site:
    """An environment with our package and its start hook, as an installation would have it."""

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
        """Run the fake `train` of whichever domainbed is found; return what it reports."""
        return self.json("-m", "domainbed.scripts.train", name, **options)

    def json(self, *arguments: str, **options: Any) -> Any:
        """Run, demand success and an empty stderr, and return the JSON that was printed."""
        done = self.run(*arguments, **options)
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)
