"""Check if a training job could start here, and suggest fixes.

`diagnose` runs the checks in this process, which has to be a fresh interpreter like the process of
a job. On request it also takes two training steps. No module is imported before its check.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import itertools
import os
import platform
import re
import shlex
import signal
import site
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

from domainbed_carft import machine, process_variables
from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.jobs.job import make_train_command
from domainbed_carft.plugin import SWITCH, Finder, is_switched_off
from domainbed_carft.version import __version__
from domainbed_carft.wording import quantity

# The states of a finding.
OK = "ok"
NOTE = "note"  # a job starts, but something could surprise its user
PROBLEM = "problem"  # no job starts, or its results are not valid

PACKAGE = os.path.dirname(os.path.abspath(__file__))

REQUIRED = (
    "clip-anytorch pillow submitit numpy torch torchvision pandas matplotlib tqdm orjson pydantic "
    "ruamel.yaml tabulate jinja2"
).split()
# For fast image decoding on CPUs, carft data download, --log (two packages), clip_backbone
# open_clip:..., and SigLIP's tokenizer.
OPTIONAL = "numba gdown tensorboard wandb open_clip_torch transformers".split()
SAFE_TORCH = (2, 10)

# Modules of the host that the package's algorithms and most training scripts import.
HOST_MODULES = ("algorithms", "hparams_registry", "datasets")

DEFAULT_BACKBONE = "ViT-B/16"  # of all datasets except the small ones
DEFAULT_BACKBONE_SIZE = "345 MB"

# The job of `train_two_steps` uses upstream's flags, and images and weights of this package.
STEP_JOB: dict[str, Any] = {
    "algorithm": "CARFT",
    "dataset": "EmojiStyles",
    "data_dir": "embedded",  # not read
    "test_envs": [0],
    "steps": 2,  # some forks evaluate after step 0 only
}
# A host can reject the datasets of this package. Upstream's Debug224 needs no files, either.
HOST_DATASET = "Debug224"
TIME_LIMIT = 600  # seconds, for the two steps on one dataset
_MAX_LINES = 20  # of the end of a failed training's output


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    state: str  # OK, NOTE or PROBLEM
    detail: str
    hint: str = ""


def diagnose(with_training: bool = False, algorithm: str = STEP_JOB["algorithm"]) -> list[Finding]:
    """Run all checks; a check that fails becomes a finding.

    Args:
        with_training: also take two steps by the `train` of the domainbed in use, unless a check
            finds a problem.
        algorithm: the algorithm of these steps.

    Returns:
        The findings. The first one names the domainbed in use. Without problems, those of
        `train_two_steps` are the last ones.
    """
    findings: list[Finding] = []
    # python -m domainbed.scripts.train has the current folder first on its path.
    with mock.patch.object(sys, "path", [os.getcwd(), *sys.path]):
        for name, check in CHECKS.items():
            try:
                findings.extend(check())
            except (Exception, SystemExit) as error:  # some modules exit when they are imported
                findings.append(describe_error(name, error))
    if with_training and not has_problem(findings):
        findings += train_two_steps(algorithm)
    return findings


def has_problem(findings: Iterable[Finding]) -> bool:
    """Return True if a job cannot start, or if its results would not be valid."""
    return any(finding.state == PROBLEM for finding in findings)


def describe_error(name: str, error: BaseException) -> Finding:
    """Return the finding for a check that raised an error, with the file where it was raised.

    For a SyntaxError, this is the file that cannot be parsed.
    """
    places = [
        f"{frame.filename}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen importlib")
    ]
    text = str(error)
    if isinstance(error, SyntaxError) and error.filename:
        text = error.msg
        places.append(f"{error.filename}:{error.lineno}")

    message = " ".join(f"{type(error).__name__}: {text}".split())
    place = f" ({places[-1]})" if places else ""
    hint = ""
    if isinstance(error, ModuleNotFoundError) and error.name:
        hint = _describe_missing_modules([error.name])
    return Finding(name, PROBLEM, message + place, hint)


def _describe_missing_modules(names: Iterable[str]) -> str:
    """Return the hint for modules that cannot be imported, some perhaps files of the checkout."""
    hints = []
    to_install = []
    root = Path.cwd()
    for name in names:
        file_name = f"{name.replace('.', '/')}.py"
        matches = itertools.chain(root.glob(f"*/{file_name}"), root.glob(f"*/*/{file_name}"))
        if (found := next(matches, None)) is None:
            to_install.append(name)
            continue

        folder = str(found)[: -len(file_name) - 1]
        hints.append(
            f"{name} is a file of your checkout, {found}; add its folder to the search path: "
            f"export PYTHONPATH={shlex.quote(folder)}"
        )
    if len(to_install) == 1:
        hints.insert(0, f"install the package that provides the module {to_install[0]}")
    elif to_install:
        hints.insert(0, f"install the packages that provide the modules {', '.join(to_install)}")
    return "; ".join(hints)


def find_missing_imports() -> list[str]:
    """Return the modules that the host imports and that are not installed, without running it.

    They are found in the code of HOST_MODULES and of what these import from the host. Imports in
    functions and in ``try`` blocks, which can be optional, do not count.
    """
    spec = find_spec("domainbed")
    folders = [*(spec.submodule_search_locations or ())] if spec else []
    queue = [f"domainbed.{module}" for module in HOST_MODULES]
    missing: dict[str, None] = {}
    for module in queue:  # grows
        parts = module.split(".")[1:]
        candidates = [
            path
            for folder in folders
            for path in (
                Path(folder, *parts).with_suffix(".py"),
                Path(folder, *parts, "__init__.py"),
            )
            if path.is_file()
        ]
        for path in candidates[:1]:
            for name in _list_imports(path, module):
                root = name.partition(".")[0]
                if root == "domainbed":
                    queue += [name] if name not in queue else []
                elif not _can_be_found(root):
                    missing[root] = None
    return list(missing)


def _list_imports(path: Path, module: str) -> Iterator[str]:
    """Yield the names of the modules that a file imports, and of what it imports from them."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    try:
        statements = ast.parse(path.read_bytes()).body
    except (SyntaxError, ValueError):  # reported when the module is imported
        return
    for statement in statements:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            base = statement.module or ""
            if statement.level:
                parents = package.split(".")[: len(package.split(".")) - statement.level + 1]
                base = ".".join(filter(None, [*parents, base]))
            yield base
            yield from (f"{base}.{alias.name}" for alias in statement.names)


def _can_be_found(module: str) -> bool:
    try:
        return module in sys.modules or find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def check_domainbed() -> Iterator[Finding]:
    """Report which domainbed would be imported."""
    spec = find_spec("domainbed")
    if spec is None:
        hint = "activate the hook, which provides a harness, or start in your checkout's root"
        yield Finding("domainbed", PROBLEM, f"not found from {os.getcwd()}", hint)
        return

    from domainbed_carft.plugin.finder import list_harness_folders

    path = os.path.abspath([*(spec.submodule_search_locations or ()), str(spec.origin)][0])
    detail = f"checkout: {path}"
    if path in list_harness_folders():
        detail = f"included harness: {path}; for a checkout run carft doctor in its root"
    yield Finding("domainbed", OK, detail)


def check_algorithms() -> Iterator[Finding]:
    """Import the host's modules, and look up CARFT and the user's own methods there.

    If one of them imports a module that is not installed, all such modules are named at once.
    """
    try:
        for module in HOST_MODULES:
            importlib.import_module(f"domainbed.{module}")
    except ModuleNotFoundError as error:
        finding = describe_error("algorithms", error)
        names = dict.fromkeys([*filter(None, [error.name]), *find_missing_imports()])
        yield replace(finding, hint=_describe_missing_modules(names))
        return

    from domainbed_carft.method.algorithms import OWN_METHODS
    from domainbed_carft.plugin.additions import HOST_NAMES

    for problem in HOST_NAMES.problems:
        yield Finding("own methods", PROBLEM, problem)
    if OWN_METHODS:
        yield Finding("own methods", OK, ", ".join(OWN_METHODS))
    carft = importlib.import_module("domainbed.algorithms").get_algorithm_class("CARFT")
    if any(base.__module__.startswith("domainbed_carft.") for base in carft.__mro__):
        yield Finding("algorithms", OK, "CARFT is the class of domainbed-carft")
    else:
        detail = f"CARFT is the class of {carft.__module__}, not of domainbed-carft"
        yield Finding("algorithms", PROBLEM, detail, "rename the class in your domainbed")


def check_versions() -> Iterator[Finding]:
    """Report the interpreter and the versions of packages: missing ones, and an unsafe torch."""
    versions = {name: _installed_version(name) for name in (*REQUIRED, *OPTIONAL)}
    listed = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    python = f"Python {platform.python_version()}, {sys.executable}"
    detail = f"{python}; domainbed-carft {__version__}, {listed}"
    missing = [name for name in REQUIRED if not versions[name]]
    if missing:
        yield Finding("versions", PROBLEM, detail, f"pip install {' '.join(missing)}")
    else:
        yield Finding("versions", OK, detail)

    torch_version = re.match(r"(\d+)\.(\d+)", versions["torch"])
    if torch_version and (int(torch_version[1]), int(torch_version[2])) < SAFE_TORCH:
        detail = "before torch 2.10 a malicious weights file can corrupt memory (CVE-2026-24747)"
        hint = "open only files that you trust, or pip install 'torch>=2.10'"
        yield Finding("torch", NOTE, detail, hint)


def _installed_version(distribution: str) -> str:
    """Return the version of a distribution, or an empty string if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def check_hook() -> Iterator[Finding]:
    """Report if the hook was installed when this interpreter started."""
    if any(isinstance(hook, Finder) for hook in sys.meta_path):
        yield Finding("hook", OK, "active")
    elif is_switched_off():
        detail = f"not active: {SWITCH} is {process_variables.DISABLE.read()!r}"
        yield Finding("hook", PROBLEM, detail, f"unset {SWITCH}")
    else:
        folders = ", ".join(site.getsitepackages())
        detail = f"not active: domainbed_carft.pth is missing or damaged in {folders}"
        install = shlex.join([sys.executable, "-m", "pip", "install", os.path.dirname(PACKAGE)])
        hint = f"{install}; or call domainbed_carft.register() in your own training script"
        yield Finding("hook", PROBLEM, detail, hint)


def check_device() -> Iterator[Finding]:
    """Report the GPUs, their memory, compute capability and driver, or else the CPU."""
    import torch

    from domainbed_carft.machine import devices

    gpus = [devices.gpu_facts(index) for index in range(devices.gpu_count())]
    if gpus:
        cards = [
            f"{gpu.name}, {gpu.memory / 1e9:.0f} GB, compute capability "
            f"{'.'.join(map(str, gpu.capability))}"
            for gpu in gpus
        ]
        detail = "; ".join(filter(None, [*cards, devices.gpu_runtime()]))
    else:
        cores = quantity(machine.cores(), "core")
        detail = f"CPU, {cores}, {quantity(torch.get_num_threads(), 'thread')}"
    yield Finding("device", OK, detail)


def check_weights() -> Iterator[Finding]:
    """Report OpenAI's weights on this machine, and the default weights if they are missing."""
    from domainbed_carft.clips import openai
    from domainbed_carft.files import weights
    from domainbed_carft.method.hparams import SMALL_DATASETS

    for name in openai.PUBLISHED[1:]:
        path, checksum = openai.find_published(name)
        label = f"backbone {name}"
        if path.exists() and weights.sha256(path) == checksum:
            yield Finding(label, OK, f"{path}, SHA-256 as published")
        elif path.exists():
            state = PROBLEM if name == DEFAULT_BACKBONE else NOTE
            detail = f"{path} is damaged, expected SHA-256 {checksum}"
            hint = f"rm {shlex.quote(str(path))}; the next job that needs it downloads it again"
            yield Finding(label, state, detail, hint)
        elif name == DEFAULT_BACKBONE:
            detail = (
                f"{path} is missing; by default all datasets except {', '.join(SMALL_DATASETS)} "
                f"need it ({DEFAULT_BACKBONE_SIZE})"
            )
            hint = "the first job that needs it downloads it; without a network, copy it there"
            yield Finding(label, NOTE, detail, hint)


# Keys: the name of the finding if the check raises an error.
CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "domainbed": check_domainbed,
    "versions": check_versions,
    "hook": check_hook,
    "algorithms": check_algorithms,
    "device": check_device,
    "weights": check_weights,
}


def train_two_steps(algorithm: str = STEP_JOB["algorithm"]) -> list[Finding]:
    """Take two steps by `train` of the domainbed in use; report its last output if it fails.

    If the host fails on EmojiStyles, the steps are repeated on its own `HOST_DATASET`. An algorithm
    of the host trains the embedded CLIP model as well.

    Returns:
        The finding ``train``, and another one if the host fails on EmojiStyles only. It is a note
        for a host that has another training script, whose flags are not known.
    """
    job = {**STEP_JOB, "algorithm": algorithm}
    if algorithm not in ALGORITHMS:
        job["hparams"] = {"clip_backbone": "tiny"}

    emoji_steps = _take_steps(job)
    if emoji_steps.has_no_script:
        detail = "not tested: this domainbed has no scripts/train.py"
        return [Finding("train", NOTE, detail, _describe_other_scripts(algorithm))]
    if emoji_steps.status == 0:
        return [Finding("train", OK, _describe_steps(job))]
    if emoji_steps.status is not None:
        host_job = {**job, "dataset": HOST_DATASET}
        if _take_steps(host_job).status == 0:
            failed = emoji_steps.as_finding(f"train {job['dataset']}", NOTE)
            return [Finding("train", OK, _describe_steps(host_job)), failed]
    return [emoji_steps.as_finding("train", PROBLEM)]


@dataclass(frozen=True)
class _Steps:
    """How `train` ended for a job of two steps."""

    job: Mapping[str, Any]
    status: int | None  # None: stopped at the time limit
    lines: list[str]  # the last lines of the output

    @property
    def has_no_script(self) -> bool:
        """True if this domainbed has no ``scripts/train.py``."""
        last_line = self.lines[-1] if self.lines else ""
        return bool(re.search(r"No module named '?domainbed\.scripts(\.train)?\b", last_line))

    def as_finding(self, name: str, state: str) -> Finding:
        """Return the finding for steps that failed or were stopped."""
        end = f"ended with status {self.status}:"
        if self.status is None:
            limit = quantity(TIME_LIMIT, "second")
            end = f"stopped, because {_describe_job(self.job)} took longer than {limit}:"
        words = make_train_command({**self.job, "output_dir": "OUT"})
        hint = f"to see more, run {shlex.join(words)}"
        return Finding(name, state, "\n".join([end, *self.lines]), hint)


def _take_steps(job: Mapping[str, Any]) -> _Steps:
    """Run a job in a folder that is removed afterwards, for at most `TIME_LIMIT`."""
    with tempfile.TemporaryDirectory(prefix="carft-doctor-") as temporary:
        job_folder, output = Path(temporary) / "job", Path(temporary) / "output"
        words = make_train_command({**job, "output_dir": str(job_folder)})
        with output.open("wb") as file:  # a grandchild that hangs would hold a pipe
            status = _run([sys.executable, *words[1:]], file)
        lines = output.read_text(encoding="utf-8", errors="replace").splitlines()[-_MAX_LINES:]
    return _Steps(job, status, lines)


def _run(words: Sequence[str], output: BinaryIO) -> int | None:
    """Return the exit status of a command, or None if it is stopped at the time limit.

    Its child processes, such as data loaders, are stopped with it.
    """
    process = subprocess.Popen(words, stdout=output, stderr=output, start_new_session=True)
    try:
        return process.wait(TIME_LIMIT)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):  # all have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _describe_job(job: Mapping[str, Any]) -> str:
    return f"two steps of {job['algorithm']} on {job['dataset']}"


def _describe_steps(job: Mapping[str, Any]) -> str:
    return f"{_describe_job(job)} by domainbed's train"


def _describe_other_scripts(algorithm: str) -> str:
    """Return what to run in a checkout without ``scripts/train.py``, such as SWAD's and MIRO's."""
    steps = f"take two steps of {algorithm}"
    names = sorted(path.name for path in Path.cwd().glob("train*.py"))
    if not names:
        return f"{steps} by your checkout's own training script"
    scripts = " or ".join(f"python {shlex.quote(name)} --help" for name in names)
    return f"{steps} by your checkout's own training script; to find its flags, run {scripts}"
