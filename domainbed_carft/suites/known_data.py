"""All datasets that are known by name, of training and of testing: list, verify, download."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from domainbed_carft import text
from domainbed_carft.data import benchmarks, download, tasks
from domainbed_carft.data import verify as verification
from domainbed_carft.errors import CarftError
from domainbed_carft.suites import imagenet

TASK_STEPS = 5001  # DomainBed's default for datasets without a number of their own


def list_known_data() -> list[dict[str, Any]]:
    """One object for each benchmark, task and test set, as `carft data list --json` prints them."""
    return [
        *map(asdict, benchmarks.BENCHMARKS.values()),
        *map(asdict, tasks.TASKS.values()),
        *({**facts, "suite": "imagenet"} for facts in imagenet.facts().values()),
    ]


def verify_data(
    name_or_path: str, data_dir: Path | None = None, decode: bool = False
) -> verification.DataReport:
    """Verify a known dataset below ``data_dir``, or a folder environment/class/image by path.

    ``decode`` decodes every image. Raises CarftError for an unknown name or missing data.
    """
    module = _module_of(name_or_path)
    judge = module.verify if module else verification.verify
    return judge(name_or_path, data_dir, decode)


def download_data(
    name: str, data_dir: Path, accept_different: bool = False
) -> verification.DataReport:
    """Download a known dataset to ``data_dir`` and verify it.

    ``accept_different`` installs a benchmark even if it differs from the known editions. Raises
    CarftError for an unknown name, a download that fails, or data that is not as expected.
    """
    module = _module_of(name)
    if module:
        return module.download(name, data_dir)
    return download.download(name, data_dir, accept_different=accept_different)


def _module_of(name: str) -> ModuleType | None:
    """The module with `verify` and `download` for a task or test set; None for all other data.

    Raises CarftError if this is neither a known name nor a path.
    """
    modules = {**dict.fromkeys(tasks.TASKS, tasks), **dict.fromkeys(imagenet.facts(), imagenet)}
    valid = [*benchmarks.BENCHMARKS, *modules]
    if name not in valid and not os.path.exists(name):
        raise CarftError(text.unknown("folder or dataset", name, valid))
    return modules.get(name)
