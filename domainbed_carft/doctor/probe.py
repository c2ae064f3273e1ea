"""What a job would meet here: ``python -m domainbed_carft.doctor.probe FILE``.

Of each check FILE gets a line with its name when it begins and one with its findings when it is
done, both JSON, and an empty name at the end, so that a crash or a hang takes away only what it
happened in. Nothing is imported before its turn: torch may be what is broken.
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
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from domainbed_carft import __version__, files, machine, plugin
from domainbed_carft.doctor import BY_HAND, Finding, host
from domainbed_carft.plugin import SWITCH

# Our dependencies: distribution -> the module that shows whether it works. Not setuptools:
# clip-anytorch imports its pkg_resources, other builds of OpenAI's package do without.
MODULES = {
    **{"numpy": "numpy", "torch": "torch", "torchvision": "torchvision"},
    **{"clip-anytorch": "clip.model", "pandas": "pandas", "pillow": "PIL.Image"},
    **{"matplotlib": "matplotlib", "tqdm": "tqdm", "orjson": "orjson", "pydantic": "pydantic"},
    **{"ruamel.yaml": "ruamel.yaml", "tabulate": "tabulate", "jinja2": "jinja2"},
    **{"submitit": "submitit"},
}
# Optional ones -> what needs them.
EXTRAS = {"gdown": "carft data download", "tensorboard": "--log", "wandb": "--log"}

# CVE-2026-24747 and CVE-2025-32434; the code of the second is refused by `files.load_weights`.
OLD_TORCH = (
    "a stranger's file of weights may corrupt memory (before torch 2.10) or, in programs other "
    "than ours, run code (before 2.6)"
)
CACHE = "set DOMAINBED_CARFT_CACHE to a folder that can be written and has space"
LOW_SPACE = 1e9  # bytes


def main(path: str) -> None:
    """Make all checks, in an order in which a later one may need what an earlier one imported."""
    before: list[Finding] = []
    with open(path, "w", encoding="utf-8") as file:
        for look in LOOKS:
            print(json.dumps(look.__name__), file=file, flush=True)
            findings = []
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    for finding in look():
                        findings.append(finding)
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
        return Finding(name, "note", "not checked, see above", host.ABOVE)
    return Finding(name, "problem", host.words(error), host.missing(error) or BY_HAND)


def python() -> Iterator[Finding]:
    """Which interpreter."""
    yield Finding("python", "ok", f"{platform.python_version()}, {sys.executable}")


def versions() -> Iterator[Finding]:
    """What is installed as a distribution, what is too old to be safe, what is optional."""
    found = {name: _version(name) for name in (*MODULES, "clip", "setuptools")}
    listed = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    yield Finding("versions", "ok", f"domainbed-carft {__version__}, {listed}")
    number = re.match(r"(\d+)\.(\d+)", found["torch"])
    if number and (int(number[1]), int(number[2])) < (2, 10):
        remedy = "open only files that you trust, or pip install 'torch>=2.10'"
        yield Finding("torch", "note", OLD_TORCH, remedy)
    optional = (f"{name} {_version(name) or 'missing'} ({use})" for name, use in EXTRAS.items())
    yield Finding("extras", "ok", f"optional: {', '.join(optional)}")


def hook() -> Iterator[Finding]:
    """Whether this interpreter was hooked when it started; nothing here could have done so."""
    folders = [
        *site.getsitepackages(),
        *([site.getusersitepackages()] * bool(site.ENABLE_USER_SITE)),
    ]
    names = [Path(f, f"domainbed_carft.{ending}") for f in folders for ending in ("pth", "start")]
    there = " and ".join(str(name) for name in names if name.is_file())
    source = os.path.dirname(os.path.dirname(os.path.abspath(plugin.__path__[0])))
    if host.is_hooked():
        found = f"active in a fresh interpreter{there and f', by {there}'}"
        yield Finding("hook", "ok", found)
    elif plugin.switched_off():
        found = f"not active: {SWITCH} is {os.environ[SWITCH]!r}"
        yield Finding("hook", "problem", found, f"unset {SWITCH}")
    else:
        found = (
            f"not active, although {there} exists: domainbed_carft could not be imported yet"
            if there
            else f"not active: domainbed_carft is used from {source}, but domainbed_carft.pth is "
            f"missing in {', '.join(folders)}, where Python reads start files"
        )
        install = f"{shlex.quote(sys.executable)} -m pip install {shlex.quote(source)}"
        remedy = f"{install}; or call domainbed_carft.register() in your own training script"
        yield Finding("hook", "problem", found, remedy)


def cache() -> Iterator[Finding]:
    """Where it is, whether it can be written, by writing, and whether it has space."""
    folder = files.cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        yield Finding("cache", "problem", f"{folder} cannot be written ({error})", CACHE)
        return
    free = shutil.disk_usage(folder).free
    found = f"{folder}, writable, {free / 1e9:.1f} GB free"
    low = free < LOW_SPACE
    yield Finding("cache", "note" if low else "ok", found, CACHE if low else "")


def imports() -> Iterator[Finding]:
    """Whether our dependencies can be imported, not only found."""
    failures = {name: error for name in MODULES if (error := host.imported(MODULES[name]))}
    for distribution, error in failures.items():
        module, again = MODULES[distribution], f"pip install --force-reinstall {distribution}"
        lacks = error.name if isinstance(error, ModuleNotFoundError) else None
        spec = find_spec(module.partition(".")[0]) if lacks == module else None
        found, remedy = (
            f"import of {module} fails: {host.words(error)}",
            host.missing(error) or again,
        )
        if spec:
            found += f" (found: {spec.origin})"
            remedy = f"{spec.origin} is another package of that name: remove it; then {again}"
        yield Finding(f"imports {distribution}", "problem", found, remedy)
    if not failures:
        yield Finding("imports", "ok", ", ".join(MODULES))


def device() -> Iterator[Finding]:
    """GPUs with their memory, or the processor; whether each has bfloat16."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cards = [torch.cuda.get_device_properties(index) for index in range(count)]
    found = "; ".join(
        f"{card.name}, {card.total_memory / 1e9:.0f} GB, bf16 {_native(card.major >= 8)}"
        for card in cards
    )
    if not cards:
        cpu = Path("/proc/cpuinfo")
        flags = set(cpu.read_text().split() if cpu.is_file() else ())
        bf16 = _native(bool(flags & {"avx512_bf16", "amx_bf16", "bf16"}))
        found = f"CPU, {machine.cores()} cores, {torch.get_num_threads()} threads, bf16 {bf16}"
    if not cards and torch.version.cuda:
        found += f"; torch is built for CUDA {torch.version.cuda}, but sees no GPU"
        remedy = "see nvidia-smi, CUDA_VISIBLE_DEVICES, and the driver: it may be too old"
        yield Finding("device", "note", found, remedy)
    elif not cards and os.path.exists("/dev/nvidiactl"):
        found += "; there is an NVIDIA driver, but torch is a build without CUDA"
        remedy = "to train on the GPU, install a CUDA build of torch and torchvision (pytorch.org)"
        yield Finding("device", "note", found, remedy)
    else:
        yield Finding("device", "ok", found)


def _native(bf16: bool) -> str:
    return "native" if bf16 else "emulated"


def backbones() -> Iterator[Finding]:
    """Published weights, whether here and whole; the default ones each by itself."""
    from domainbed_carft.method import backbone

    absent = []
    for weights in backbone.inventory():
        name, path = f"backbone {weights.name}", weights.path
        if weights.size is None and weights.name not in ("tiny", "ViT-B/16"):
            absent.append(weights.name)
        elif weights.size is None and weights.name == "ViT-B/16":
            found = f"not at {path}; it is the default of all data sets but EmojiStyles"
            remedy = (
                "with internet access, nothing: the first job downloads it; without, copy "
                f"{path.name} (SHA-256 {weights.expected}) to that path"
            )
            yield Finding(name, "note", found, remedy)
        elif weights.digest == weights.expected:
            yield Finding(name, "ok", f"{path}, {weights.size:,} bytes, SHA-256 as published")
        else:
            found = f"{path} is missing, damaged or another file: its SHA-256 is {weights.digest}"
            remedy = f"rm {shlex.quote(str(path))}: it is downloaded again when it is next used"
            if weights.name == "tiny":
                remedy = "install domainbed-carft again (pip install --force-reinstall --no-deps)"
            # No job needs the others, unless it asks for them.
            needed = weights.name in ("tiny", "ViT-B/16")
            found += f", expected {weights.expected}"
            yield Finding(name, "problem" if needed else "note", found, remedy)
    if absent:
        found = f"not here: {', '.join(absent)}"
        yield Finding("backbones", "note", found, "nothing: each is downloaded when first used")


def step() -> Iterator[Finding]:
    """One CARFT step of the tiny CLIP on noise, through the host's own lookups."""
    started = time.perf_counter()
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
    seconds = time.perf_counter() - started
    found = f"one CARFT step on {place}: loss {loss:.3f}, {seconds:.1f} s in all"
    yield Finding("step", "ok", found)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


LOOKS = (
    *(python, versions, hook, cache, imports),
    *(host.domainbed, host.algorithms, device, backbones, step),
)


if __name__ == "__main__":
    main(sys.argv[1])
