"""Deleting the folder of a job, so that no other process takes half of it for a job."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from domainbed_carft.jobs.folder import JobFolder

# How the name of a folder begins that is being deleted.
_PREFIX = ".deleted-"


def delete_claimed(folder: JobFolder) -> None:
    """Delete a folder whose lock this process holds.

    First it gets another name: a launch from then on makes a new folder, with a lock of its own.
    Raises OSError if that is impossible.
    """
    folder.records_path.unlink(missing_ok=True)  # no table has half a folder
    moved = folder.path.with_name(f"{_PREFIX}{folder.path.name}-{os.getpid()}")
    folder.path.rename(moved)
    shutil.rmtree(moved)


def delete_remains(output: Path) -> None:
    """Delete what interrupted deletions have left in an output folder and its variants."""
    for path in (*output.glob(f"{_PREFIX}*"), *output.glob(f"*/{_PREFIX}*")):
        shutil.rmtree(path, ignore_errors=True)
