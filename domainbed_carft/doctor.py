"""Check if a training job could start here, and suggest fixes.

`diagnose` runs the checks in this process, which has to be a fresh interpreter like the process of
a job. On request it also takes two training steps. No module is imported before its check.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shlex
import site
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

from domainbed_carft import machine, process_variables
from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.jobs.job import command
from domainbed_carft.plugin import SWITCH, Finder, is_switched_off
from domainbed_carft.text import quantity
from domainbed_carft.version import __version__

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
        with_training: Also take two steps by the `train` of the domainbed in use, unless a check
            finds a problem.
        algorithm: The algorithm of these steps.

    Returns:
        The findings. The first one names the domainbed in use.
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
        findings.append(train_two_steps(algorithm))
    return findings


def has_problem(findings: Iterable[Finding]) -> bool:
    """Return True if a job cannot start, or if its results would not be valid."""
    return any(finding.state == PROBLEM for finding in findings)


def describe_error(name: str, error: BaseException) -> Finding:
    """Return the finding for a check that raised an error, with the file where it was raised."""
    traceback = error.__traceback__
    while traceback and traceback.tb_next:
        traceback = traceback.tb_next
    place = f" ({traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno})" if traceback else ""
    message = " ".join(f"{type(error).__name__}: {error}".split())
    hint = ""
    if isinstance(error, ModuleNotFoundError) and error.name:
        hint = f"install the package that provides the module {error.name}"
    return Finding(name, PROBLEM, message + place, hint)


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
    """Import the host's modules, and look up CARFT and the user's own methods there."""
    for module in HOST_MODULES:
        importlib.import_module(f"domainbed.{module}")

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


def train_two_steps(algorithm: str = STEP_JOB["algorithm"]) -> Finding:
    """Take two steps by `train` of the domainbed in use; report its last output if it fails.

    An algorithm of the host trains the embedded CLIP model as well.
    """
    job = {**STEP_JOB, "algorithm": algorithm}
    if algorithm not in ALGORITHMS:
        job["hparams"] = {"clip_backbone": "tiny"}

    with tempfile.TemporaryDirectory(prefix="carft-doctor-") as temporary:
        job_folder, output = Path(temporary) / "job", Path(temporary) / "output"
        words = command({**job, "output_dir": str(job_folder)})
        with output.open("wb") as file:  # a grandchild that hangs would hold a pipe
            done = subprocess.run([sys.executable, *words[1:]], stdout=file, stderr=file)
        lines = output.read_text(encoding="utf-8", errors="replace").splitlines()[-_MAX_LINES:]

    if done.returncode == 0:
        detail = f"two steps of {algorithm} on EmojiStyles by domainbed's train"
        return Finding("train", OK, detail)
    detail = "\n".join([f"ended with status {done.returncode}:", *lines])
    hint = f"to see more, run {shlex.join(command({**job, 'output_dir': 'OUT'}))}"
    return Finding("train", PROBLEM, detail, hint)
