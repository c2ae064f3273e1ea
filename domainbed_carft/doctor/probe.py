"""What a job would meet here: ``python -m domainbed_carft.doctor.probe FILE``.

For each check FILE gets a line with its name at the start and one with its findings at the end,
both JSON, and an empty name after the last, so that a crash or a hang loses only its own check.
Nothing is imported before its turn: torch may be broken.
"""

from __future__ import annotations

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
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from domainbed_carft import __version__, files, machine, plugin
from domainbed_carft.doctor import BY_HAND, Finding
from domainbed_carft.errors import CarftWarning
from domainbed_carft.plugin import SWITCH, Finder, finder

# Our dependencies: distribution -> the module that shows whether it works.
SAME = "numpy torch torchvision pandas matplotlib tqdm orjson pydantic ruamel.yaml tabulate jinja2"
MODULES = {"clip-anytorch": "clip.model", "pillow": "PIL.Image", "submitit": "submitit"}
MODULES |= {name: name for name in SAME.split()}
# For carft data download, --log twice, and clip_backbone open_clip:... with SigLIP's tokenizer.
OPTIONAL = ("gdown", "tensorboard", "wandb", "open_clip_torch", "transformers")

# What our algorithms need of a host, and most hosts' training scripts import.
HOST_MODULES = ("", ".algorithms", ".hparams_registry", ".datasets")

ABOVE = "fix the problems above first"
EXTENSION = "fix the cause that the warning names; domainbed_carft.register() shows a traceback"

# CVE-2026-24747 and CVE-2025-32434; the code of the second is refused by `files.weights`.
OLD_TORCH = (
    "a malicious weights file may corrupt memory (before torch 2.10) or, in programs other "
    "than ours, run code (before 2.6)"
)
CACHE = "set DOMAINBED_CARFT_CACHE to a writable folder on a disk with free space"


def main(path: str) -> None:
    """Make all checks, in an order in which a later one may need what an earlier one imported."""
    before: list[Finding] = []
    with open(path, "w", encoding="utf-8") as file:
        for look in LOOKS:
            print(json.dumps(look.__name__), file=file, flush=True)
            findings: list[Finding] = []
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    findings.extend(look())
            # A module may also call sys.exit when it is imported.
            except (Exception, SystemExit) as error:
                traceback.print_exc()  # for who runs this by hand
                findings.append(_failed(look.__name__, error, before))
            print(json.dumps([asdict(finding) for finding in findings]), file=file, flush=True)
            before += findings
        print(json.dumps(""), file=file)


def _failed(name: str, error: BaseException, before: Sequence[Finding]) -> Finding:
    causes = ("hook", "imports", "domainbed", "algorithms")
    spoilt = any(one.state == "problem" and one.name.startswith(causes) for one in before)
    if name in ("algorithms", "step") and spoilt:
        return Finding(name, "note", "not checked, see above", ABOVE)
    return Finding(name, "problem", _words(error), _install(error) or BY_HAND)


def versions() -> Iterator[Finding]:
    """Which interpreter, what is installed, what is too old to be safe, what is optional."""
    yield Finding("python", "ok", f"{platform.python_version()}, {sys.executable}")
    found = {name: _version(name) for name in (*MODULES, *OPTIONAL)}
    listed = ", ".join(f"{name} {version or 'missing'}" for name, version in found.items())
    yield Finding("versions", "ok", f"domainbed-carft {__version__}, {listed}")
    number = re.match(r"(\d+)\.(\d+)", found["torch"])
    if number and (int(number[1]), int(number[2])) < (2, 10):
        remedy = "open only files that you trust, or pip install 'torch>=2.10'"
        yield Finding("torch", "note", OLD_TORCH, remedy)


def hook() -> Iterator[Finding]:
    """Whether this interpreter was hooked when it started; nothing here could have done so."""
    source = os.path.dirname(os.path.dirname(os.path.abspath(plugin.__path__[0])))
    if _is_hooked():
        yield Finding("hook", "ok", "active in a fresh interpreter")
    elif plugin.switched_off():
        found = f"not active: {SWITCH} is {os.environ[SWITCH]!r}"
        yield Finding("hook", "problem", found, f"unset {SWITCH}")
    else:
        places = ", ".join(site.getsitepackages())
        found = f"not active: domainbed_carft.pth is missing or damaged in {places}"
        install = f"{shlex.quote(sys.executable)} -m pip install {shlex.quote(source)}"
        remedy = f"{install}; or call domainbed_carft.register() in your own training script"
        yield Finding("hook", "problem", found, remedy)


def cache() -> Iterator[Finding]:
    """Where it is, and whether it can be written, by writing."""
    folder = files.cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        yield Finding("cache", "problem", f"{folder} cannot be written ({error})", CACHE)
        return
    yield Finding("cache", "ok", f"{folder}, writable, {free / 1e9:.1f} GB free")


def imports() -> Iterator[Finding]:
    """Whether our dependencies can be imported, not only found."""
    failures = {name: error for name in MODULES if (error := _imported(MODULES[name]))}
    for name, error in failures.items():
        module = MODULES[name]
        found = f"import of {module} fails: {_words(error)}"
        remedy = _install(error) or f"pip install --force-reinstall {name}"
        yield Finding(f"imports {name}", "problem", found, remedy)
    if not failures:
        yield Finding("imports", "ok", ", ".join(MODULES))


def domainbed() -> Iterator[Finding]:
    """Which domainbed is found, whose it is, what of it cannot be imported."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tried = ((name, _imported(f"domainbed{name}")) for name in HOST_MODULES)
        failed, error = next(((name, error) for name, error in tried if error), ("", None))
    path = _folder()
    if path is None:
        remedy = "activate the hook, which provides a harness, or start in your checkout's root"
        yield Finding("domainbed", "problem", f"none found from {os.getcwd()}", remedy)
        return
    folders = [folder for folder in finder.harness_folders() if os.path.exists(folder)]
    ours = any(os.path.samefile(folder, path) for folder in folders)
    yield Finding("domainbed", "ok", f"{'ours, the harness' if ours else 'foreign'}: {path}")
    if error:  # the others most likely fail of the same
        remedy = f"python -c 'import domainbed{failed}' shows where it fails"
        if not _lacks(error).startswith("domainbed"):
            remedy = _install(error) or remedy
        found = f"import of domainbed{failed} fails: {_words(error)}"
        yield Finding(f"domainbed{failed}", "problem", found, remedy)
    for warning in caught:
        if issubclass(warning.category, CarftWarning):
            yield Finding("plugin", "note", str(warning.message), EXTENSION)


def algorithms() -> Iterator[Finding]:
    """Whether the names of our algorithms stand for our classes."""
    from domainbed_carft.method.hparams import ALGORITHMS

    host = importlib.import_module("domainbed.algorithms")
    others = []
    for name in ALGORITHMS:
        try:
            ours = host.get_algorithm_class(name).__module__.startswith("domainbed_carft")
        except Exception:  # upstream raises NotImplementedError, forks a KeyError
            ours = False
        others += [name] * (not ours)
    if others:
        # Whoever asks for CARFT would train something else without knowing.
        state = "problem" if "CARFT" in others and _is_hooked() else "note"
        found = f"{', '.join(others)}: missing, or domainbed's own instead of ours"
        remedy = f"rename its {', '.join(others)}, or {EXTENSION}" if _is_hooked() else ABOVE
        yield Finding("algorithms", state, found, remedy)
    else:
        yield Finding("algorithms", "ok", ", ".join(ALGORITHMS))


def device() -> Iterator[Finding]:
    """GPUs with their memory, or the processor."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cards = [torch.cuda.get_device_properties(index) for index in range(count)]
    found = "; ".join(f"{card.name}, {card.total_memory / 1e9:.0f} GB" for card in cards)
    cpu = f"CPU, {machine.cores()} cores, {torch.get_num_threads()} threads"
    yield Finding("device", "ok", found or cpu)


def backbones() -> Iterator[Finding]:
    """Published weights, whether here and whole."""
    from domainbed_carft.clips import backbone
    from domainbed_carft.files import weights

    for name in backbone.PUBLISHED:
        path, expected = backbone.published(name)
        if name != "tiny" and not path.exists():
            continue  # it is downloaded when it is first used
        if path.is_file() and weights.sha256(path) == expected:
            yield Finding(f"backbone {name}", "ok", f"{path}, SHA-256 as published")
        else:
            found = f"{path} is missing or damaged, expected SHA-256 {expected}"
            remedy = f"rm {shlex.quote(str(path))} (the next job that needs the file downloads it)"
            if name == "tiny":
                remedy = "reinstall domainbed-carft (pip install --force-reinstall --no-deps)"
            # Others are needed only by jobs that ask for them.
            needed = name in ("tiny", "ViT-B/16")
            yield Finding(f"backbone {name}", "problem" if needed else "note", found, remedy)


def step() -> Iterator[Finding]:
    """One CARFT step of the tiny CLIP on noise, through the host's own lookups."""
    import torch

    algorithms = importlib.import_module("domainbed.algorithms")
    registry = importlib.import_module("domainbed.hparams_registry")
    place = "cuda" if torch.cuda.is_available() else "cpu"
    hparams = registry.default_hparams("CARFT", "EmojiStyles")
    algorithm = algorithms.get_algorithm_class("CARFT")((3, 48, 48), 10, 2, hparams).to(place)
    noise = [(torch.rand(2, 3, 48, 48), torch.randint(10, (2,))) for _ in range(2)]
    measured = algorithm.update([(x.to(place), y.to(place)) for x, y in noise])
    loss = float(measured["loss"])
    if not math.isfinite(loss):
        raise ArithmeticError(f"the loss is {loss}")
    yield Finding("step", "ok", f"one CARFT step on {place}: loss {loss:.3f}")


LOOKS = (versions, hook, cache, imports, domainbed, algorithms, device, backbones, step)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _is_hooked() -> bool:
    return any(isinstance(hook, Finder) for hook in sys.meta_path)


def _folder() -> Path | None:
    spec = find_spec("domainbed")
    folders = [Path(f).absolute() for f in spec.submodule_search_locations or ()] if spec else []
    whole = [folder for folder in folders if list(folder.glob("algorithms*"))]
    return next(iter(whole or folders), None)


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


def _lacks(error: BaseException) -> str:
    """The module that was not found, if that was it; else ""."""
    return (isinstance(error, ModuleNotFoundError) and error.name) or ""


def _install(error: BaseException) -> str:
    top = _lacks(error).partition(".")[0]
    called = {module.partition(".")[0]: name for name, module in MODULES.items()}
    called["pkg_resources"] = "'setuptools<82'"
    return f"pip install {called.get(top, top)}" if top else ""


if __name__ == "__main__":
    main(sys.argv[1])
