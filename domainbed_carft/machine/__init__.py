"""Cores, memory and GPUs that a process can use. Only the module `devices` needs torch."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from domainbed_carft import process_variables

# Process variables that launchers set for a job.
CORES = process_variables.CORES.name  # number of cores
PROCESSES = process_variables.PROCESSES.name  # number of processes, each with its own GPU
IMAGE_MEMORY = process_variables.IMAGE_MEMORY.name  # memory for evaluation images

# By default evaluation images use at most a quarter of a job's memory.
_IMAGE_SHARE = 4

# The beginning of a line of /proc/self/cgroup that names a group of version 2, below the root.
_CGROUP_V2 = "0::/"
# Options of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def cores(root: Path = Path("/")) -> int:
    """Return the number of cores that CPU affinity and cgroup quotas allow this process."""
    get_affinity = getattr(os, "sched_getaffinity", None)
    counts = [len(get_affinity(0)) if get_affinity else os.cpu_count() or 1]

    for limit in _cgroup_limits("cpu.max", root):
        quota, period = limit.split()
        if quota != "max":
            counts.append(math.ceil(int(quota) / int(period)))

    return max(1, min(counts))


def job_cores(root: Path = Path("/")) -> int:
    """Return the number of cores for a job: the share set by a launcher, or all of `cores`."""
    count = cores(root)
    share = process_variables.CORES.read()
    return min(count, int(share)) if share.isdigit() and int(share) else count


def get_cpu_name(root: Path = Path("/")) -> str:
    """Return the name of the CPU and the cores of a job, such as ``AMD EPYC 7R13, 2 cores``."""
    name = platform.machine() or "CPU"
    with contextlib.suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
                break

    count = job_cores(root)
    return f"{name}, {count} {'core' if count == 1 else 'cores'}"


def gpu_driver(root: Path = Path("/")) -> str:
    """Return the version of NVIDIA's driver, or an empty string if it is not loaded."""
    with contextlib.suppress(OSError):
        text = (root / "proc/driver/nvidia/version").read_text(encoding="utf-8")
        version = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)", text)
        return version[1] if version else ""
    return ""


def memory(root: Path = Path("/")) -> int:
    """Return the bytes of memory that this process can use.

    The memory is limited by cgroups and by SLURM's limit of a job, which not every cluster enforces
    by cgroups.
    """
    sizes = [_installed_memory()]
    sizes += [int(limit) for limit in _cgroup_limits("memory.max", root) if limit != "max"]

    megabytes = os.environ.get("SLURM_MEM_PER_NODE", "")
    if megabytes.isdecimal() and int(megabytes):  # 0 means no limit
        sizes.append(int(megabytes) << 20)
    return min(sizes)


def _installed_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def image_memory(jobs: int = 1) -> int:
    """Return the bytes of memory in which a job can keep evaluation images.

    Without a memory limit, the process uses the same share of the memory as of the cores, because
    other jobs can run on the other cores, for example on a node of SLURM.

    Args:
        jobs: number of jobs that run on this machine at a time.
    """
    available = memory()
    if available == _installed_memory():
        available = available * job_cores() // (os.cpu_count() or 1)
    return available // _IMAGE_SHARE // jobs


def _cgroup_limits(name: str, root: Path) -> list[str]:
    """Read the file ``name`` of this process's cgroup (version 2) and of all its parents."""
    limits = []
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            if not line.startswith(_CGROUP_V2):
                continue

            process_group = Path(line.removeprefix(_CGROUP_V2))
            for group in (process_group, *process_group.parents):
                with contextlib.suppress(OSError):
                    path = root / "sys/fs/cgroup" / group / name
                    limits.append(path.read_text(encoding="utf-8").strip())
    return limits


def divide_cores(cores: int, on_gpu: bool) -> tuple[int, int]:
    """Divide the cores of a job between computing threads and loading processes.

    If the CPU computes, a quarter of the cores load images, since a step of the smallest CLIP model
    takes four times as long as loading its images. With a GPU all cores except one load images, but
    at least one process loads.

    Returns:
        The number of threads and the number of loading processes.
    """
    loaders = max(1, cores - 1) if on_gpu else cores // 4
    return max(1, cores - loaders), loaders


def job_variables(
    cores: int, on_gpu: bool, user_variables: Mapping[str, str], processes: int = 1
) -> dict[str, str]:
    """Return the environment variables that a launcher sets for a job.

    Args:
        cores: number of cores of the job.
        on_gpu: True if the job computes on a GPU.
        user_variables: variables that are already set. Their settings of threads are kept.
        processes: number of processes of the job.
    """
    user_processes = user_variables.get(PROCESSES, "")
    if processes < 2 and user_processes.isdecimal():
        processes = max(1, int(user_processes))  # several processes without GPUs

    new_variables = {CORES: str(cores)}
    if processes > 1:
        new_variables[PROCESSES] = str(processes)

    if "OMP_NUM_THREADS" not in user_variables:
        # OpenBLAS and MKL read OpenMP's variable too, but MKL prefers its own.
        threads, _ = divide_cores(max(1, cores // processes), on_gpu)
        new_variables["OMP_NUM_THREADS"] = str(threads)
        new_variables["MKL_NUM_THREADS"] = str(threads)

    # By default OpenMP's threads spin while they wait for each other. If anything else runs, they
    # keep a core from the thread they wait for, and a job takes four times as long.
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & user_variables.keys():
        new_variables["OMP_WAIT_POLICY"] = "PASSIVE"
    return new_variables


def keep_freed_memory() -> None:
    """Let glibc keep memory that this process frees, and reuse it.

    By default glibc returns large blocks to the kernel, which clears each page before it is used
    again. This slows down steps on the CPU, whose activations are such blocks. The peak memory of
    the process does not change.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)  # allocate no block separately
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # return nothing


def gpus() -> list[str]:
    """Return the GPUs listed by CUDA_VISIBLE_DEVICES, or else all GPUs listed by nvidia-smi.

    ROCm uses the same variable.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return [name for name in names if name and name != "-1"]

    return [str(index) for index in range(_nvidia_gpu_count())]


def _nvidia_gpu_count() -> int:
    """Count the GPUs that nvidia-smi lists; 0 if it is not installed."""
    try:
        listing = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return 0

    # MIG devices, indented below their GPU, are used only if CUDA_VISIBLE_DEVICES names them.
    return sum(line.startswith("GPU ") for line in listing.split("\n"))
