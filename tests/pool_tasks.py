"""Tasks of `runs.pool`, which its processes import."""

from __future__ import annotations

import os
import sys
import time
import warnings
from pathlib import Path

from torch.utils.data import DataLoader, Dataset

from domainbed_carft.errors import CarftError, CarftWarning
from domainbed_carft.runs import pool
from domainbed_carft.runs.predictions import worker_count

SECONDS = 60.0  # of a slow task


class SlowImages(Dataset[int]):
    """Items that take `SECONDS` together, and a file for each loading process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return int(SECONDS / 0.05)

    def __getitem__(self, index: int) -> int:
        mark_process(self.folder, "loader")
        time.sleep(0.05)
        return index


def mark_process(folder: Path, kind: str) -> None:
    (folder / f"{kind} {os.getpid()}").touch()


def load_slowly(folder: Path) -> bool:
    mark_process(folder, "worker")
    for _ in DataLoader(SlowImages(folder), num_workers=1):
        pass
    return True


def sleep(folder: Path) -> bool:
    """Sleep in one call, so that only another thread or a signal can end the process."""
    mark_process(folder, "worker")
    mark_process(folder, "loader")
    time.sleep(SECONDS)
    return True


def raise_unexpected(message: str) -> bool:
    warnings.warn(f"warning before {message}", CarftWarning, stacklevel=1)
    raise KeyError(message)


def leave(message: str) -> bool:
    sys.exit(message)


def succeed() -> bool:
    return True


def report_loaders() -> bool:
    raise CarftError(f"{worker_count(None, has_many_images=True)} loaders")


def main() -> None:
    """Run two tasks of this module at a time: ``python pool_tasks.py TASK FOLDER``."""
    import functools

    task = globals()[sys.argv[1]]
    tasks = {name: functools.partial(task, Path(sys.argv[2])) for name in "ab"}
    pool.run_tasks(tasks, jobs=2)


if __name__ == "__main__":
    main()
