"""What a training job would meet here: ``python -m domainbed_carft.doctor FILE``.

After each check FILE gets a line of JSON with its findings, so that a crash or a hang loses only
its own check. Nothing is imported before its turn: torch may be broken.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import platform
import re
import shlex
import shutil
import site
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from typing import NamedTuple

from domainbed_carft import __version__, files, machine
from domainbed_carft.errors import CarftWarning
from domainbed_carft.plugin import SWITCH, Finder, finder, switched_off

PACKAGE = os.path.dirname(os.path.abspath(__file__))

# Our dependencies: distribution -> the module that shows whether it works.
SAME = "numpy torch torchvision pandas matplotlib tqdm orjson pydantic ruamel.yaml tabulate jinja2"
MODULES = {"clip-anytorch": "clip.model", "pillow": "PIL.Image", "submitit": "submitit"}
MODULES |= {name: name for name in SAME.split()}
# For carft data download, --log twice, and clip_backbone open_clip:... with SigLIP's tokenizer.
OPTIONAL = ("gdown", "tensorboard", "wandb", "open_clip_torch", "transformers")

# What our algorithms need of a host, and most hosts' training scripts import.
HOST_MODULES = ["domainbed"]
HOST_MODULES += [f"domainbed.{name}" for name in ("algorithms", "hparams_registry", "datasets")]

ABOVE = "fix the problems above first"
BY_HAND = "run python -X faulthandler -m domainbed_carft.doctor /dev/stdout to see more"
CACHE = "set DOMAINBED_CARFT_CACHE to a writable folder on a disk with free space"
DEFAULT_BACKBONE = "ViT-B/16"  # of all data sets without a smaller CLIP of their own
SIZE = "350 MB"  # of its weights
TRAIN_IT = "carft doctor --train takes a step with it, on EmojiStyles"
EXTENSION = "fix the cause that the warning names; domainbed_carft.register() shows a traceback"


class Finding(NamedTuple):
    """One thing that was looked at.

    ``state``: "ok"; "problem" keeps a job from starting, "note" may surprise somebody.
    """

    name: str
    state: str
    found: str
    remedy: str = ""


def main(path: str) -> None:
    """Make all checks, in an order in which a later one may need what an earlier one imported."""
    state, advice = "problem", BY_HAND
    with open(path, "w", encoding="utf-8") as file:
        for check in CHECKS:
            findings: list[Finding] = []
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    findings.extend(check())
                except (Exception, SystemExit) as error:  # some modules exit when imported
                    traceback.print_exc()  # for who runs this by hand
                    remedy = CACHE if check is cache else _install(error) or advice
                    findings.append(Finding(check.__name__, state, _words(error), remedy))
            ours = (str(one.message) for one in caught if issubclass(one.category, CarftWarning))
            findings += [Finding("plugin", "note", words, EXTENSION) for words in ours]
            print(json.dumps(findings), file=file, flush=True)
            if any(finding.state == "problem" for finding in findings):
                state, advice = "note", ABOVE  # of what may follow from it


def versions() -> Iterator[Finding]:
    """Which interpreter, what is installed, what is too old to be safe, what is optional."""
    found = {name: _version(name) for name in (*MODULES, *OPTIONAL)}
    listed = ", ".join(f"{name} {version or 'missing'}" for name, version in found.items())
    python = f"Python {platform.python_version()}, {sys.executable}"
    yield Finding("versions", "ok", f"{python}; domainbed-carft {__version__}, {listed}")
    number = re.match(r"(\d+)\.(\d+)", found["torch"])
    if number and (int(number[1]), int(number[2])) < (2, 10):
        told = "before torch 2.10 a malicious weights file may corrupt memory (CVE-2026-24747)"
        remedy = "open only files that you trust, or pip install 'torch>=2.10'"
        yield Finding("torch", "note", told, remedy)


def hook() -> Iterator[Finding]:
    """Whether this interpreter was hooked when it started; nothing here could have done so."""
    if any(isinstance(one, Finder) for one in sys.meta_path):
        yield Finding("hook", "ok", "active in a fresh interpreter")
    elif switched_off():
        found = f"not active: {SWITCH} is {os.environ[SWITCH]!r}"
        yield Finding("hook", "problem", found, f"unset {SWITCH}")
    else:
        places = ", ".join(site.getsitepackages())
        found = f"not active: domainbed_carft.pth is missing or damaged in {places}"
        install = shlex.join([sys.executable, "-m", "pip", "install", os.path.dirname(PACKAGE)])
        remedy = f"{install}; or call domainbed_carft.register() in your own training script"
        yield Finding("hook", "problem", found, remedy)


def cache() -> Iterator[Finding]:
    """Where it is, and whether it can be written, by writing."""
    folder = files.cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        free = shutil.disk_usage(folder).free
    yield Finding("cache", "ok", f"{folder}, writable, {free / 1e9:.1f} GB free")


def imports() -> Iterator[Finding]:
    """Whether our dependencies can be imported, not only found."""
    failures = {name: error for name in MODULES if (error := _imported(MODULES[name]))}
    for name, error in failures.items():
        found = f"import of {MODULES[name]} fails: {_words(error)}"
        remedy = _install(error) or f"pip install --force-reinstall {name}"
        yield Finding(f"imports {name}", "problem", found, remedy)
    if not failures:
        yield Finding("imports", "ok", ", ".join(MODULES))


def domainbed() -> Iterator[Finding]:
    """Which domainbed is found, whose it is, what of it cannot be imported."""
    tried = ((name, _imported(name)) for name in HOST_MODULES)
    failed, error = next(((name, error) for name, error in tried if error), ("", None))
    spec = find_spec("domainbed")
    if spec is None:
        remedy = "activate the hook, which provides a harness, or start in your checkout's root"
        yield Finding("domainbed", "problem", f"none found from {os.getcwd()}", remedy)
        return
    path = os.path.abspath([*(spec.submodule_search_locations or ()), str(spec.origin)][0])
    ours = os.path.realpath(path) in map(os.path.realpath, finder.harness_folders())
    yield Finding("domainbed", "ok", f"{'ours, the harness' if ours else 'foreign'}: {path}")
    if not ours:
        yield Finding("train", "note", "not tried: this checkout has its own train", TRAIN_IT)
    if error:  # the others most likely fail of the same
        remedy = _install(error) or f"python -c 'import {failed}' shows where it fails"
        yield Finding(failed, "problem", f"import of {failed} fails: {_words(error)}", remedy)


def algorithms() -> Iterator[Finding]:
    """Whether the names of our algorithms stand for our classes."""
    from domainbed_carft.method.hparams import ALGORITHMS

    host = importlib.import_module("domainbed.algorithms")
    others = list(ALGORITHMS)
    for name in ALGORITHMS:
        with contextlib.suppress(Exception):  # upstream raises NotImplementedError, forks KeyError
            if host.get_algorithm_class(name).__module__.startswith("domainbed_carft"):
                others.remove(name)
    if listed := ", ".join(others):
        # Whoever asks for CARFT would train something else without knowing.
        state = "problem" if "CARFT" in others else "note"
        found = f"{listed}: missing, or domainbed's own instead of ours"
        yield Finding("algorithms", state, found, f"rename its {listed}, or {EXTENSION}")
    else:
        yield Finding("algorithms", "ok", ", ".join(ALGORITHMS))


def device() -> Iterator[Finding]:
    """GPUs with their memory, or the processor."""
    import torch

    cards = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    found = "; ".join(f"{card.name}, {card.total_memory / 1e9:.0f} GB" for card in cards)
    cpu = f"CPU, {machine.cores()} cores, {torch.get_num_threads()} threads"
    yield Finding("device", "ok", found or cpu)


def backbones() -> Iterator[Finding]:
    """OpenAI's weights that are here, and the default ones if they are missing.

    Those that few jobs ask for are not missed. `step` loads tiny.
    """
    from domainbed_carft.clips import backbone
    from domainbed_carft.files import weights
    from domainbed_carft.method.hparam_kinds import SMALL_DATASETS

    for name in backbone.PUBLISHED[1:]:
        path, expected = backbone.published(name)
        if name == DEFAULT_BACKBONE and not path.exists():
            small = ", ".join(SMALL_DATASETS)
            found = f"no {path}; by default all data sets but {small} need it ({SIZE})"
            remedy = "the first job that needs it downloads it; without a network copy it there"
            yield Finding(f"backbone {name}", "note", found, remedy)
        if path.exists() and weights.sha256(path) == expected:
            yield Finding(f"backbone {name}", "ok", f"{path}, SHA-256 as published")
        elif path.exists():
            found = f"{path} is damaged, expected SHA-256 {expected}"
            state = "problem" if name == DEFAULT_BACKBONE else "note"  # few jobs ask for the others
            remedy = f"rm {shlex.quote(str(path))}, which the next job that needs it downloads"
            yield Finding(f"backbone {name}", state, found, remedy)


def step() -> Iterator[Finding]:
    """One CARFT step of the tiny CLIP on noise, through the host's own lookups."""
    import torch

    algorithms = importlib.import_module("domainbed.algorithms")
    registry = importlib.import_module("domainbed.hparams_registry")
    place = "cuda" if torch.cuda.is_available() else "cpu"
    hparams = registry.default_hparams("CARFT", "EmojiStyles")
    algorithm = algorithms.get_algorithm_class("CARFT")((3, 48, 48), 10, 2, hparams).to(place)
    noise = [(torch.rand(2, 3, 48, 48), torch.randint(10, (2,))) for _ in range(2)]
    loss = float(algorithm.update([(x.to(place), y.to(place)) for x, y in noise])["loss"])
    if not math.isfinite(loss):
        raise ArithmeticError(f"the loss is {loss}")
    yield Finding("step", "ok", f"one CARFT step on {place}: loss {loss:.3f}")


CHECKS = (versions, hook, cache, imports, domainbed, algorithms, device, backbones, step)


def _version(distribution: str) -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(distribution)
    return ""


def _imported(name: str) -> BaseException | None:
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        return error
    return None


def _words(error: BaseException) -> str:
    message = " ".join(str(error).split())
    kind = "" if isinstance(error, ImportError) and message else f"{type(error).__name__}: "
    return f"{kind}{message}"


def _install(error: BaseException) -> str:
    """How to install the module that was not found, if that was it; else ""."""
    missing = (isinstance(error, ModuleNotFoundError) and error.name) or "domainbed"
    top = missing.partition(".")[0]
    called = {"pkg_resources": "'setuptools<82'", "clip": "clip-anytorch", "PIL": "pillow"}
    return "" if top == "domainbed" else f"pip install {called.get(top, top)}"


if __name__ == "__main__":
    main(sys.argv[1])
