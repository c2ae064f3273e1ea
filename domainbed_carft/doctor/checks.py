"""The checks of what a training job would meet here, each a function that yields findings.

Nothing is imported before its turn: torch may be broken.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import platform
import re
import shlex
import shutil
import site
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from domainbed_carft import files, machine, process_variables
from domainbed_carft.doctor import host_files
from domainbed_carft.doctor.findings import NOTE, OK, PROBLEM, SKIPPED, Finding
from domainbed_carft.doctor.import_errors import (
    error_message,
    import_error,
    installation_command,
    pip_command,
)
from domainbed_carft.plugin import SWITCH, Finder, switched_off
from domainbed_carft.version import __version__

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Our dependencies: distribution -> the module that shows whether it works.
MODULES = {
    "clip-anytorch": "clip.model",
    "pillow": "PIL.Image",
    "submitit": "submitit",
    "numpy": "numpy",
    "torch": "torch",
    "torchvision": "torchvision",
    "pandas": "pandas",
    "matplotlib": "matplotlib",
    "tqdm": "tqdm",
    "orjson": "orjson",
    "pydantic": "pydantic",
    "ruamel.yaml": "ruamel.yaml",
    "tabulate": "tabulate",
    "jinja2": "jinja2",
}
# For carft data download, --log twice, and clip_backbone open_clip:... with SigLIP's tokenizer.
OPTIONAL = ("gdown", "tensorboard", "wandb", "open_clip_torch", "transformers")

# What our algorithms need of a host, and most hosts' training scripts import.
HOST_MODULES = (
    "domainbed",
    "domainbed.algorithms",
    "domainbed.hparams_registry",
    "domainbed.datasets",
)

TRAIN_SCRIPT = "domainbed/scripts/train.py"

SAFE_TORCH = (2, 10)

# Of the noise that `check_step` trains on: EmojiStyles with two environments left out.
INPUT_SHAPE = (3, 48, 48)
CLASS_COUNT = 10
DOMAIN_COUNT = 2

DEFAULT_BACKBONE = "ViT-B/16"  # of all data sets without a smaller CLIP of their own
DEFAULT_BACKBONE_SIZE = "350 MB"

# Seconds; each job imports as much, unless it is forked from a process that has.
SLOW_IMPORTS = 60.0

# Remedies.
FIX_ABOVE = "fix the problems above first"
RUN_BY_HAND = "run python -X faulthandler -m domainbed_carft.doctor /dev/stdout to see more"
CHOOSE_CACHE = f"set {process_variables.CACHE.name} to a writable folder on a disk with free space"
MOVE_ENVIRONMENT = "put the Python environment on a local disk, or into a container image"
TRAIN_A_STEP = "carft doctor --train takes a step with it, on EmojiStyles"
FIX_EXTENSION = "fix the cause that the warning names; domainbed_carft.register() shows a traceback"


def check_versions() -> Iterator[Finding]:
    """Which interpreter, what is installed, what is too old to be safe, what is optional."""
    versions = {name: _installed_version(name) for name in (*MODULES, *OPTIONAL)}
    listed = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    python = f"Python {platform.python_version()}, {sys.executable}"
    yield Finding("versions", OK, f"{python}; domainbed-carft {__version__}, {listed}")

    torch_version = re.match(r"(\d+)\.(\d+)", versions["torch"])
    if torch_version and (int(torch_version[1]), int(torch_version[2])) < SAFE_TORCH:
        detail = "before torch 2.10 a malicious weights file may corrupt memory (CVE-2026-24747)"
        remedy = "open only files that you trust, or pip install 'torch>=2.10'"
        yield Finding("torch", NOTE, detail, remedy)


def check_hook() -> Iterator[Finding]:
    """Whether this interpreter was hooked when it started; nothing here could have done so."""
    if any(isinstance(hook, Finder) for hook in sys.meta_path):
        yield Finding("hook", OK, "active in a fresh interpreter")
    elif switched_off():
        detail = f"not active: {SWITCH} is {process_variables.DISABLE.read()!r}"
        yield Finding("hook", PROBLEM, detail, f"unset {SWITCH}")
    else:
        folders = ", ".join(site.getsitepackages())
        detail = f"not active: domainbed_carft.pth is missing or damaged in {folders}"
        install = shlex.join([sys.executable, "-m", "pip", "install", os.path.dirname(PACKAGE)])
        remedy = f"{install}; or call domainbed_carft.register() in your own training script"
        yield Finding("hook", PROBLEM, detail, remedy)


def check_cache() -> Iterator[Finding]:
    """Where it is, and whether it can be written, by writing."""
    folder = files.cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        free = shutil.disk_usage(folder).free
    yield Finding("cache", OK, f"{folder}, writable, {free / 1e9:.1f} GB free")


def check_imports() -> Iterator[Finding]:
    """Whether our dependencies can be imported, not only found, and how long that takes."""
    has_failed = False
    started = time.monotonic()
    for distribution, module in MODULES.items():
        error = import_error(module)
        if error:
            has_failed = True
            detail = f"import of {module} fails: {error_message(error)}"
            remedy = installation_command(error) or f"pip install --force-reinstall {distribution}"
            yield Finding(f"imports {distribution}", PROBLEM, detail, remedy)

    seconds = time.monotonic() - started
    detail = f"{', '.join(MODULES)}, in {seconds:.1f} seconds"
    if seconds > SLOW_IMPORTS:
        yield Finding("imports", NOTE, f"slow: {detail}", MOVE_ENVIRONMENT)
    elif not has_failed:
        yield Finding("imports", OK, detail)


def check_domainbed() -> Iterator[Finding]:
    """Which domainbed is found, whose it is, and the first of its modules that fails."""
    from domainbed_carft.method.host_lookup import in_our_harness

    failed_module, error = _first_failing_host_module()
    spec = find_spec("domainbed")
    if spec is None:
        remedy = "activate the hook, which provides a harness, or start in your checkout's root"
        yield Finding("domainbed", PROBLEM, f"none found from {os.getcwd()}", remedy)
        return

    locations = [*(spec.submodule_search_locations or ()), str(spec.origin)]
    path = os.path.abspath(locations[0])
    is_harness = False
    with contextlib.suppress(Exception):  # it may fail as a whole
        is_harness = in_our_harness()
    owner = "ours, the harness" if is_harness else "foreign"
    yield Finding("domainbed", OK, f"{owner}: {path}")

    # An import fails of the first that is missing.
    missing = [] if is_harness else host_files.missing_libraries(Path(path))
    if missing:
        detail = f"this checkout's training imports {', '.join(missing)}, not installed"
        yield Finding("libraries", PROBLEM, detail, pip_command(missing))
    elif error:
        detail = f"import of {failed_module} fails: {error_message(error)}"
        remedy = installation_command(error)
        remedy = remedy or f"python -c 'import {failed_module}' shows where it fails"
        yield Finding(failed_module, PROBLEM, detail, remedy)
    if not is_harness:
        yield _finding_of_script(Path(path))


def _finding_of_script(package: Path) -> Finding:
    """That a checkout's training is not tried here, and how to try it."""
    scripts = host_files.training_scripts(package)
    if TRAIN_SCRIPT in scripts:
        return Finding("train", SKIPPED, "not tried: this checkout has its own train", TRAIN_A_STEP)

    detail = "not tried: this checkout has no domainbed.scripts.train"
    examples = f", such as {', '.join(scripts)}" if scripts else ""
    return Finding("train", SKIPPED, detail, f"take a step by its own entry point{examples}")


def check_algorithms() -> Iterator[Finding]:
    """Whether the names of our algorithms stand for our classes, and the user's own methods."""
    from domainbed_carft.jobs.algorithms import ALGORITHMS
    from domainbed_carft.method.algorithms import OWN
    from domainbed_carft.plugin.additions import HOST_NAMES

    host = importlib.import_module("domainbed.algorithms")
    for problem in HOST_NAMES.problems:
        yield Finding("own methods", PROBLEM, problem.message, problem.remedy)
    if HOST_NAMES.problems:
        return
    not_ours = list(ALGORITHMS)
    for name in ALGORITHMS:
        with contextlib.suppress(Exception):  # upstream raises NotImplementedError, forks KeyError
            bases = host.get_algorithm_class(name).__mro__
            if any(base.__module__.startswith("domainbed_carft.") for base in bases):
                not_ours.remove(name)

    if not_ours:
        listed = ", ".join(not_ours)
        # A job of CARFT would train something else, and nobody would know.
        state = PROBLEM if "CARFT" in not_ours else NOTE
        detail = f"{listed}: missing, or domainbed's own instead of ours"
        yield Finding("algorithms", state, detail, f"rename its {listed}, or {FIX_EXTENSION}")
    else:
        yield Finding("algorithms", OK, ", ".join(ALGORITHMS))
    if OWN:
        yield Finding("own methods", OK, ", ".join(OWN))


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


def check_backbones() -> Iterator[Finding]:
    """OpenAI's weights that are here, and the default ones if they are missing.

    Others are not missed: few jobs ask for them. `check_step` loads tiny.
    """
    from domainbed_carft.clips import openai
    from domainbed_carft.method.hparams import SMALL_DATASETS

    for name in openai.PUBLISHED[1:]:
        path, checksum = openai.published(name)
        if path.exists():
            yield _finding_of_weights(name, path, checksum)
        elif name == DEFAULT_BACKBONE:
            yield Finding(
                f"backbone {name}",
                NOTE,
                f"no {path}; by default all data sets but {', '.join(SMALL_DATASETS)} need it "
                f"({DEFAULT_BACKBONE_SIZE})",
                "the first job that needs it downloads it; without a network copy it there",
            )


def _finding_of_weights(name: str, path: Path, checksum: str) -> Finding:
    from domainbed_carft.files import weights

    if weights.sha256(path) == checksum:
        return Finding(f"backbone {name}", OK, f"{path}, SHA-256 as published")

    state = PROBLEM if name == DEFAULT_BACKBONE else NOTE
    detail = f"{path} is damaged, expected SHA-256 {checksum}"
    remedy = f"rm {shlex.quote(str(path))}, which the next job that needs it downloads"
    return Finding(f"backbone {name}", state, detail, remedy)


def check_step() -> Iterator[Finding]:
    """One CARFT step of the tiny CLIP on noise, through the host's own lookups."""
    import torch

    from domainbed_carft.machine import devices

    algorithms = importlib.import_module("domainbed.algorithms")
    registry = importlib.import_module("domainbed.hparams_registry")
    device = devices.default_device()
    hparams = registry.default_hparams("CARFT", "EmojiStyles")
    carft = algorithms.get_algorithm_class("CARFT")
    algorithm = carft(INPUT_SHAPE, CLASS_COUNT, DOMAIN_COUNT, hparams).to(device)

    minibatches = []
    for _ in range(DOMAIN_COUNT):
        pictures = torch.rand(2, *INPUT_SHAPE)
        labels = torch.randint(CLASS_COUNT, (2,))
        minibatches.append((pictures.to(device), labels.to(device)))
    loss = float(algorithm.update(minibatches)["loss"])

    if not math.isfinite(loss):
        raise ArithmeticError(f"the loss is {loss}")
    yield Finding("step", OK, f"one CARFT step on {device}: loss {loss:.3f}")


# By the name that a finding has if the check fails.
CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "versions": check_versions,
    "hook": check_hook,
    "cache": check_cache,
    "imports": check_imports,
    "domainbed": check_domainbed,
    "algorithms": check_algorithms,
    "device": check_device,
    "backbones": check_backbones,
    "step": check_step,
}


def _installed_version(distribution: str) -> str:
    """The version of ``distribution``, "" if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _first_failing_host_module() -> tuple[str, BaseException | None]:
    """The others most likely fail for the same reason."""
    for module in HOST_MODULES:
        error = import_error(module)
        if error:
            return module, error
    return "", None
