"""List, verify and download the datasets and test sets that are known by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from domainbed_carft import suggestions
from domainbed_carft.data import benchmarks, downloads, tasks, verification
from domainbed_carft.data.listing import is_list
from domainbed_carft.errors import CarftError
from domainbed_carft.suites import imagenet, imagenet_training

TASK_STEPS = 5001  # DomainBed's default number of training steps


def list_known_data() -> list[dict[str, Any]]:
    """Return the objects that `carft data list --json` prints."""
    return [
        *map(asdict, benchmarks.BENCHMARKS.values()),
        *map(asdict, tasks.TASKS.values()),
        *({**facts, "suite": "imagenet"} for facts in imagenet.facts().values()),
    ]


def verify_data(
    name_or_path: str, data_dir: Path | None = None, decode: bool = False
) -> verification.DataReport:
    """Verify a known dataset below ``data_dir``, or a folder environment/class/image.

    Args:
        name_or_path: name of a dataset, or the folder.
        data_dir: folder of the datasets' folders.
        decode: decode every image.

    Raises:
        CarftError: if the name is unknown or the data is missing.
    """
    module = _find_module(name_or_path)
    verify = module.verify if module else verification.verify
    return verify(name_or_path, data_dir, decode)


def download_data(
    name: str,
    data_dir: Path,
    accept_different: bool = False,
    given_files: Sequence[Path] = (),
) -> verification.DataReport:
    """Download a known dataset to ``data_dir`` and verify it.

    Args:
        name: name of the dataset.
        data_dir: folder of the datasets' folders.
        accept_different: install a benchmark even if it differs from the known editions.
        given_files: files that need no download, or folders that contain them. They are only read.

    Raises:
        CarftError: if the name is unknown, the download fails, or the data is not as expected.
    """
    module = _find_module(name)
    if module is None:
        return downloads.download(
            name, data_dir, accept_different=accept_different, given_files=given_files
        )
    if module is imagenet:
        return imagenet.download(name, data_dir, given_files=given_files)
    if given_files:
        raise CarftError(
            f"{name} is downloaded by torchvision, without --from; put its archives into "
            f"{data_dir / tasks.TASKS[name].folder} instead"
        )
    return tasks.download(name, data_dir)


def find_image_folder(name: str, data_dir: str) -> str | None:
    """Return the folder or list of the dataset's images: "" without one, None if unknown."""
    if name == "ImageNet":
        return imagenet_training.expected_folder(data_dir)

    published = benchmarks.BENCHMARKS.get(name) or tasks.TASKS.get(name)
    if published is not None:
        return os.path.join(data_dir, published.folder) if published.folder else ""
    if os.path.isdir(name) or is_list(name):
        return name
    return "" if name.startswith("Debug") else None


def _find_module(name: str) -> ModuleType | None:
    """Return the module that verifies and downloads a task or a test set, or None.

    Raises:
        CarftError: if ``name`` is neither a known name nor a path.
    """
    modules = {**dict.fromkeys(tasks.TASKS, tasks), **dict.fromkeys(imagenet.facts(), imagenet)}
    valid = [*benchmarks.BENCHMARKS, *modules]
    if name not in valid and not os.path.exists(name):
        raise CarftError(suggestions.unknown("folder or dataset", name, valid))
    return modules.get(name)
