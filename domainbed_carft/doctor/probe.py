"""What a job would meet here: ``python -m domainbed_carft.doctor.probe FILE``.

Writes a line of JSON a section to FILE as soon as it is known, so that a crash or a hang takes
away only what it happened in. Nothing is judged here, and nothing is imported before its turn:
torch may be what is broken.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import platform
import shutil
import site
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from domainbed_carft import __version__, files, plugin
from domainbed_carft.doctor import host
from domainbed_carft.doctor.findings import Facts

# Our dependencies: distribution -> the module that shows whether it works. Not setuptools:
# clip-anytorch imports its pkg_resources, other builds of OpenAI's package do without.
MODULES = {
    "numpy": "numpy",
    "torch": "torch",
    "torchvision": "torchvision",
    "clip-anytorch": "clip.model",
    "pandas": "pandas",
    "pillow": "PIL.Image",
    "matplotlib": "matplotlib",
    "tqdm": "tqdm",
}


def main(path: str) -> None:
    """Collect all sections, each into a line of the file ``path``."""
    with open(path, "w", encoding="utf-8") as file:
        for section, look in LOOKS.items():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    facts = look()
            # A module may also call sys.exit when it is imported.
            except (Exception, SystemExit) as error:
                traceback.print_exc()  # for who runs this by hand
                facts = host.failure(error)
            print(json.dumps({section: facts}), file=file, flush=True)


def look_at_python() -> Facts:
    """Which interpreter, where, and whether the command ``python`` starts the same environment."""
    command = shutil.which("python")
    return {
        "version": platform.python_version(),
        "executable": sys.executable,
        "folder": os.getcwd(),
        "folder_on_path": not getattr(sys.flags, "safe_path", False),
        "command": command,
        "command_is_this": command is not None and _prefix(command) == sys.prefix,
    }


def look_at_versions() -> Facts:
    """Distribution -> version, None where it is not installed as one."""
    return {
        "domainbed-carft": __version__,
        **{d: _version(d) for d in (*MODULES, "clip", "setuptools")},
    }


def look_at_hook() -> Facts:
    """Whether this interpreter was hooked when it started; nothing here could have done so."""
    folders = [Path(folder) for folder in site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        folders.append(Path(site.getusersitepackages()))
    files = [folder / f"domainbed_carft.{end}" for folder in folders for end in ("pth", "start")]
    return {
        "active": any(isinstance(finder, plugin.HostFinder) for finder in sys.meta_path),
        "switch": os.environ.get(plugin.SWITCH) if plugin.switched_off() else None,
        "start_files": [str(file) for file in files if file.is_file()],
        "site_packages": [str(folder) for folder in folders],
        "package": os.path.dirname(os.path.abspath(plugin.__path__[0])),
    }


def look_at_cache() -> Facts:
    """Where it is, and whether it can be written, by writing; the free space in bytes."""
    folder = files.cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return {"path": str(folder), "error": str(error), "free": None}
    return {"path": str(folder), "error": None, "free": shutil.disk_usage(folder).free}


def look_at_imports() -> Facts:
    """Distribution -> why its module cannot be imported, None where it can."""
    return {distribution: host.try_import(module) for distribution, module in MODULES.items()}


def look_at_device() -> Facts:
    """GPUs with their memory in bytes, and the processor's cores and threads."""
    import torch

    from domainbed_carft import machine

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.cuda.get_device_properties(index) for index in range(count)]
    return {
        "gpus": [
            {"name": gpu.name, "memory": gpu.total_memory, "bf16": gpu.major >= 8} for gpu in gpus
        ],
        "cores": machine.cores(),
        "threads": torch.get_num_threads(),
        "bf16": _processor_has_bf16(),
        "torch_cuda": torch.version.cuda,
        "nvidia_driver": os.path.exists("/dev/nvidiactl"),
    }


def look_at_backbones() -> list[Facts]:
    """Published weights, whether here and whole; sizes in bytes."""
    from domainbed_carft.method import backbone

    return [
        {
            "name": weights.name,
            "path": str(weights.path),
            "size": weights.size,
            "expected": weights.expected,
            "digest": weights.digest,
        }
        for weights in backbone.inventory()
    ]


def look_at_step() -> Facts:
    """One CARFT step of the tiny CLIP on noise, through the host's own lookups."""
    started = time.perf_counter()
    import torch

    algorithms = importlib.import_module("domainbed.algorithms")
    registry = importlib.import_module("domainbed.hparams_registry")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hparams = registry.default_hparams("CARFT", "EmojiStyles")
    algorithm = algorithms.get_algorithm_class("CARFT")((3, 48, 48), 10, 2, hparams).to(device)
    noise = [(torch.rand(2, 3, 48, 48), torch.randint(10, (2,))) for _ in range(2)]
    measured = algorithm.update([(x.to(device), y.to(device)) for x, y in noise])
    loss = float(measured["loss"])
    if not math.isfinite(loss):
        raise ArithmeticError(f"the loss is {loss}")
    return {"loss": loss, "seconds": time.perf_counter() - started, "device": device}


def _prefix(interpreter: str) -> str | None:
    return host.said([interpreter, "-c", "import sys; print(sys.prefix)"])


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _processor_has_bf16() -> bool | None:
    """Whether the processor multiplies in bfloat16, None where it does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(text.split())


# In the order in which they are taken: a later one may need what an earlier one has imported.
LOOKS: dict[str, Callable[[], object]] = {
    "python": look_at_python,
    "versions": look_at_versions,
    "hook": look_at_hook,
    "cache": look_at_cache,
    "imports": look_at_imports,
    "domainbed": host.look_at_domainbed,
    "algorithms": host.look_at_algorithms,
    "device": look_at_device,
    "backbones": look_at_backbones,
    "step": look_at_step,
}


if __name__ == "__main__":
    main(sys.argv[1])
