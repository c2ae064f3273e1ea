"""Rows on the environment: what `carft doctor` finds, and what a whole sweep needs of it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from pathlib import Path

from domainbed_carft.doctor import Finding, run_checks
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import JobFolder
from domainbed_carft.preflight.rows import failed_row, passed_row, row_of_problem, warning_row

SECTION = "environment"
LOADING_SECTION = "speed and cost"  # of what is known only after the data is loaded

# The checks of `carft doctor` that this rehearsal does not make itself, on the sweep's own jobs.
DOCTORS_CHECKS = ("versions", "hook", "cache", "imports", "domainbed", "algorithms", "device")

SHARED_MEMORY = Path("/dev/shm")
_BATCHES_PER_WORKER = 2  # that torch's loader reads ahead
_MOST_OF_A_DISK = 0.9  # of the free space; others write there, too


def doctors_findings() -> list[Finding]:
    """The findings of `carft doctor` that matter here, from a fresh interpreter."""
    findings = run_checks(names=DOCTORS_CHECKS)
    return [dataclasses.replace(finding, section=SECTION) for finding in findings]


def lock_row(output: Path) -> Finding:
    """Whether a lock on a file of the output folder keeps another process out."""
    remedy = "put the output folder on a local disk, NFS version 4, or Lustre with -o flock"
    try:
        with tempfile.TemporaryDirectory(dir=output, prefix=".preflight-") as temporary:
            folder = JobFolder(temporary)
            with folder.claim():
                is_held = folder.is_held()
    except (CarftError, OSError) as error:
        return failed_row(SECTION, "file locks", str(error), remedy)

    if not is_held:
        detail = f"{output}: two processes can hold the same lock, so a job could run twice"
        return failed_row(SECTION, "file locks", detail, remedy)
    return passed_row(SECTION, "file locks", f"{output}: a second process is kept out")


def shared_memory_row(
    picture_bytes: int, batch_size: int, workers: int, free: int | None
) -> Finding:
    """Whether what loader processes read ahead fits into the memory that they share with the job.

    ``free``: bytes of /dev/shm, which is needed only where the system refuses memory without a file
    system; None where it does not, and so nothing can be too small.
    """
    name = "shared memory"
    if free is None:
        detail = f"loader processes hand batches over without {SHARED_MEMORY} (by memfd)"
        return passed_row(LOADING_SECTION, name, detail)

    needed = picture_bytes * batch_size * _BATCHES_PER_WORKER * workers
    detail = (
        f"{SHARED_MEMORY} has {free / 1e9:.2f} GB free; {workers} loader processes need "
        f"{needed / 1e9:.2f} GB"
    )
    problem = "batches cannot be handed over" if needed > free else ""
    remedy = "start the container with --shm-size 8g (Docker) or --ipc=host, or use fewer cores"
    figures = {"needed_bytes": needed, "free_bytes": free}
    return row_of_problem(LOADING_SECTION, name, detail, problem, remedy, **figures)


def free_shared_memory() -> int | None:
    """The free bytes of /dev/shm, 0 where there is none; None where it is not needed."""
    try:
        os.close(os.memfd_create("preflight", os.MFD_CLOEXEC))
    except OSError:  # a sandbox without it; the harness's loaders look in the same way
        return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
    return None


def disk_row(weights_bytes: int, state_bytes: int, free: int, output: Path) -> Finding:
    """Whether the weights of all jobs and the states of running ones fit into ``free`` bytes."""
    needed = weights_bytes + state_bytes
    detail = (
        f"{output} has {free / 1e9:.1f} GB free; the sweep writes {weights_bytes / 1e9:.1f} GB of "
        f"weights, and {state_bytes / 1e9:.1f} GB of states while jobs run"
    )
    figures = {"weights_bytes": weights_bytes, "state_bytes": state_bytes, "free_bytes": free}
    problem = "the disk will be full" if needed > free else ""
    remedy = "free some space, choose another --output_dir, or launch with --keep_weights best"
    if not problem and needed > _MOST_OF_A_DISK * free:
        return warning_row(LOADING_SECTION, "disk space", detail, remedy, **figures)
    return row_of_problem(LOADING_SECTION, "disk space", detail, problem, remedy, **figures)


def memory_row(free: int, total: int, device_name: str) -> Finding:
    """How much memory of the device others use now."""
    detail = f"{device_name}: {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    if free >= _MOST_OF_A_DISK * total:
        return passed_row(SECTION, "device memory", detail, free_bytes=free, total_bytes=total)
    remedy = "another process computes there: end it, or choose a card by CUDA_VISIBLE_DEVICES"
    return warning_row(SECTION, "device memory", detail, remedy, free_bytes=free, total_bytes=total)
