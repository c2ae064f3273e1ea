"""Whether a training job could start here, and how to fix what keeps it from starting.

`diagnose` makes the checks in this process, which has to be a fresh interpreter, as that of a job
is. If you want, it also takes two steps of training. No module is imported before its check.
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
from unittest import mock

from domainbed_carft import machine, process_variables
from domainbed_carft.jobs.job import command
from domainbed_carft.plugin import SWITCH, Finder, switched_off
from domainbed_carft.version import __version__

# The states of a finding.
OK = "ok"
NOTE = "note"  # a job starts, but something may surprise its user
PROBLEM = "problem"  # no job starts, or its results do not count

PACKAGE = os.path.dirname(os.path.abspath(__file__))

# Our dependencies; then those for CPUs, carft data download, --log twice, and clip_backbone
# open_clip:... with SigLIP's tokenizer.
REQUIRED = (
    "clip-anytorch pillow submitit numpy torch torchvision pandas matplotlib tqdm orjson pydantic "
    "ruamel.yaml tabulate jinja2"
).split()
OPTIONAL = "numba gdown tensorboard wandb open_clip_torch transformers".split()
SAFE_TORCH = (2, 10)

# What our algorithms need of a host, and most hosts' training scripts import.
HOST_MODULES = ("algorithms", "hparams_registry", "datasets")

DEFAULT_BACKBONE = "ViT-B/16"  # of all datasets without a smaller CLIP of their own
DEFAULT_BACKBONE_SIZE = "345 MB"

# The job of `train_two_steps`: its images and weights are in our package, its flags upstream's.
STEP_JOB = {
    "algorithm": "CARFT",
    "dataset": "EmojiStyles",
    "data_dir": "embedded",  # not read
    "test_envs": [0],
    "steps": 2,  # some forks evaluate after step 0 only
}
_MAX_LINES = 20  # of what a failed training printed last


@dataclass(frozen=True)
class Finding:
    """The result of looking at one thing: ``state`` is OK, NOTE or PROBLEM."""

    name: str
    state: str
    found: str
    remedy: str = ""


def diagnose(with_training: bool = False) -> list[Finding]:
    """Make all checks; the first finding says which domainbed was looked at.

    ``with_training`` also takes two steps by the `train` of that domainbed, if no check finds a
    problem. Raises nothing: what fails is a finding.
    """
    findings: list[Finding] = []
    # The current folder comes first, as for python -m domainbed.scripts.train.
    with mock.patch.object(sys, "path", [os.getcwd(), *sys.path]):
        for name, check in CHECKS.items():
            try:
                findings.extend(check())
            except (Exception, SystemExit) as error:  # some modules exit when they are imported
                findings.append(finding_of_error(name, error))
    if with_training and not has_problem(findings):
        findings.append(train_two_steps())
    return findings


def has_problem(findings: Iterable[Finding]) -> bool:
    """Whether something keeps a job from starting, or its results from counting."""
    return any(finding.state == PROBLEM for finding in findings)


def finding_of_error(name: str, error: BaseException) -> Finding:
    """The finding of a check that raised an error, with the file where it was raised."""
    traceback = error.__traceback__
    while traceback and traceback.tb_next:
        traceback = traceback.tb_next
    place = f" ({traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno})" if traceback else ""
    found = " ".join(f"{type(error).__name__}: {error}".split())
    remedy = ""
    if isinstance(error, ModuleNotFoundError) and error.name:
        remedy = f"install what provides the module {error.name}"
    return Finding(name, PROBLEM, found + place, remedy)


def check_domainbed() -> Iterator[Finding]:
    """Which domainbed is found, and whose it is."""
    spec = find_spec("domainbed")
    if spec is None:
        remedy = "activate the hook, which provides a harness, or start in your checkout's root"
        yield Finding("domainbed", PROBLEM, f"none found from {os.getcwd()}", remedy)
        return

    from domainbed_carft.plugin.finder import harness_folders

    path = os.path.abspath([*(spec.submodule_search_locations or ()), str(spec.origin)][0])
    found = f"foreign: {path}"
    if path in harness_folders():
        found = f"ours, the harness: {path}; for a checkout run carft doctor in its root"
    yield Finding("domainbed", OK, found)


def check_algorithms() -> Iterator[Finding]:
    """Whether its modules can be imported, and have our CARFT; and the user's own methods."""
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
        yield Finding("algorithms", OK, "CARFT is ours")
    else:
        found = f"CARFT is the class of {carft.__module__}, not ours"
        yield Finding("algorithms", PROBLEM, found, "rename the class of your domainbed")


def check_versions() -> Iterator[Finding]:
    """Which interpreter, what is installed, what is missing, and what is too old to be safe."""
    versions = {name: _installed_version(name) for name in (*REQUIRED, *OPTIONAL)}
    listed = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    python = f"Python {platform.python_version()}, {sys.executable}"
    found = f"{python}; domainbed-carft {__version__}, {listed}"
    missing = [name for name in REQUIRED if not versions[name]]
    if missing:
        yield Finding("versions", PROBLEM, found, f"pip install {' '.join(missing)}")
    else:
        yield Finding("versions", OK, found)

    torch_version = re.match(r"(\d+)\.(\d+)", versions["torch"])
    if torch_version and (int(torch_version[1]), int(torch_version[2])) < SAFE_TORCH:
        detail = "before torch 2.10 a malicious weights file may corrupt memory (CVE-2026-24747)"
        remedy = "open only files that you trust, or pip install 'torch>=2.10'"
        yield Finding("torch", NOTE, detail, remedy)


def _installed_version(distribution: str) -> str:
    """The version of ``distribution``, "" if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def check_hook() -> Iterator[Finding]:
    """Whether this interpreter was hooked when it started; nothing here could have done so."""
    if any(isinstance(hook, Finder) for hook in sys.meta_path):
        yield Finding("hook", OK, "active")
    elif switched_off():
        detail = f"not active: {SWITCH} is {process_variables.DISABLE.read()!r}"
        yield Finding("hook", PROBLEM, detail, f"unset {SWITCH}")
    else:
        folders = ", ".join(site.getsitepackages())
        detail = f"not active: domainbed_carft.pth is missing or damaged in {folders}"
        install = shlex.join([sys.executable, "-m", "pip", "install", os.path.dirname(PACKAGE)])
        remedy = f"{install}; or call domainbed_carft.register() in your own training script"
        yield Finding("hook", PROBLEM, detail, remedy)


def check_device() -> Iterator[Finding]:
    """GPUs with their memory and compute capability, and the driver; or the processor."""
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
        detail = f"CPU, {machine.cores()} cores, {torch.get_num_threads()} threads"
    yield Finding("device", OK, detail)


def check_weights() -> Iterator[Finding]:
    """OpenAI's weights that are here, and the default ones if they are missing.

    Others are not missed: few jobs ask for them.
    """
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
            found = f"{path} is damaged, expected SHA-256 {checksum}"
            remedy = f"rm {shlex.quote(str(path))}, which the next job that needs it downloads"
            yield Finding(label, state, found, remedy)
        elif name == DEFAULT_BACKBONE:
            found = (
                f"no {path}; by default all datasets but {', '.join(SMALL_DATASETS)} need it "
                f"({DEFAULT_BACKBONE_SIZE})"
            )
            remedy = "the first job that needs it downloads it; without a network copy it there"
            yield Finding(label, NOTE, found, remedy)


# By the name that a finding has if the check fails.
CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "domainbed": check_domainbed,
    "versions": check_versions,
    "hook": check_hook,
    "algorithms": check_algorithms,
    "device": check_device,
    "weights": check_weights,
}


def train_two_steps() -> Finding:
    """Whether `train` of the domainbed in use takes two steps; if not, what it printed last."""
    with tempfile.TemporaryDirectory(prefix="carft-doctor-") as temporary:
        job_folder, output = Path(temporary) / "job", Path(temporary) / "output"
        words = command({**STEP_JOB, "output_dir": str(job_folder)})
        with output.open("wb") as file:  # a grandchild that hangs would hold a pipe
            done = subprocess.run([sys.executable, *words[1:]], stdout=file, stderr=file)
        lines = output.read_text(encoding="utf-8", errors="replace").splitlines()[-_MAX_LINES:]

    if done.returncode == 0:
        return Finding("train", OK, "two steps of CARFT on EmojiStyles by its own command")
    found = "\n".join([f"ended with status {done.returncode}:", *lines])
    by_hand = f"to see more, run {shlex.join(command({**STEP_JOB, 'output_dir': 'OUT'}))}"
    return Finding("train", PROBLEM, found, by_hand)
