"""What of this machine a process may use: cores, memory, GPUs. Module `devices` needs torch."""

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

# The variable by which a launcher tells a job how many cores are its share.
CORES = process_variables.CORES.name

# The variable for the number of its processes, each with a GPU of its own.
PROCESSES = process_variables.PROCESSES.name

# The variable for the memory that its evaluation images may stay in.
IMAGE_MEMORY = process_variables.IMAGE_MEMORY.name

# The share of a job's memory that this is by default.
_IMAGE_SHARE = 4

# How a line of /proc/self/cgroup begins that names a group of version 2, below the root.
_CGROUP_V2 = "0::/"
# Options of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def cores(root: Path = Path("/")) -> int:
    """The cores this process may use: those it is bound to, or fewer if a cgroup has a quota."""
    get_affinity = getattr(os, "sched_getaffinity", None)
    counts = [len(get_affinity(0)) if get_affinity else os.cpu_count() or 1]

    for limit in _cgroup_limits("cpu.max", root):
        quota, period = limit.split()
        if quota != "max":
            counts.append(math.ceil(int(quota) / int(period)))

    return max(1, min(counts))


def job_cores(root: Path = Path("/")) -> int:
    """The cores that a job may use: the share that a launcher gave it, else all of `cores`."""
    count = cores(root)
    share = process_variables.CORES.read()
    return min(count, int(share)) if share.isdigit() and int(share) else count


def get_cpu_name(root: Path = Path("/")) -> str:
    """The processor and how many of its cores a job uses, as ``AMD EPYC 7R13, 2 cores``."""
    name = platform.machine() or "processor"
    with contextlib.suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
                break

    count = job_cores(root)
    return f"{name}, {count} {'core' if count == 1 else 'cores'}"


def gpu_driver(root: Path = Path("/")) -> str:
    """The version of NVIDIA's driver; "" if it is not loaded."""
    with contextlib.suppress(OSError):
        text = (root / "proc/driver/nvidia/version").read_text(encoding="utf-8")
        version = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)", text)
        return version[1] if version else ""
    return ""


def memory(root: Path = Path("/")) -> int:
    """The bytes of memory this process may use.

    The machine's, or fewer if a cgroup has a limit, or a job of SLURM, which not every cluster
    enforces by cgroups.
    """
    sizes = [_installed_memory()]
    sizes += [int(limit) for limit in _cgroup_limits("memory.max", root) if limit != "max"]

    megabytes = os.environ.get("SLURM_MEM_PER_NODE", "")
    if megabytes.isdecimal() and int(megabytes):  # 0 stands for all
        sizes.append(int(megabytes) << 20)
    return min(sizes)


def _installed_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def image_memory(jobs: int = 1) -> int:
    """The bytes that evaluation images of each of so many jobs on this machine may stay in.

    Where nothing limits the memory of a process, it has as large a share of it as of the cores: on
    the others there may be other jobs, as on a node of SLURM.
    """
    available = memory()
    if available == _installed_memory():
        available = available * job_cores() // (os.cpu_count() or 1)
    return available // _IMAGE_SHARE // jobs


def _cgroup_limits(name: str, root: Path) -> list[str]:
    """The file ``name`` of the process's own cgroup (version 2), and of those around it."""
    limits = []
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            if not line.startswith(_CGROUP_V2):
                continue

            own_group = Path(line.removeprefix(_CGROUP_V2))
            for group in (own_group, *own_group.parents):
                with contextlib.suppress(OSError):
                    path = root / "sys/fs/cgroup" / group / name
                    limits.append(path.read_text(encoding="utf-8").strip())
    return limits


def share(cores: int, on_gpu: bool) -> tuple[int, int]:
    """Threads that compute and processes that load, for a job on so many cores.

    Together they are no more than the cores, but for one that loads beside a GPU. A quarter of the
    cores load where the processor computes, since a step of the smallest CLIP takes it four times
    as long as the images do; all but one where a GPU computes. A rule of ours.
    """
    loaders = max(1, cores - 1) if on_gpu else cores // 4
    return max(1, cores - loaders), loaders


def variables(
    cores: int, on_gpu: bool, user_variables: Mapping[str, str], processes: int = 1
) -> dict[str, str]:
    """The environment variables that a launcher sets for a job on so many cores.

    ``user_variables``: those that are set already; what they say of threads is left to them.
    """
    user_processes = user_variables.get(PROCESSES, "")
    if processes < 2 and user_processes.isdecimal():
        processes = max(1, int(user_processes))  # where there are no GPUs to give

    new_variables = {CORES: str(cores)}
    if processes > 1:
        new_variables[PROCESSES] = str(processes)

    if "OMP_NUM_THREADS" not in user_variables:
        # OpenMP's is read by OpenBLAS and MKL too, but MKL's own wins, if it is set.
        threads, _ = share(max(1, cores // processes), on_gpu)
        new_variables["OMP_NUM_THREADS"] = str(threads)
        new_variables["MKL_NUM_THREADS"] = str(threads)

    # By default OpenMP's threads spin while they wait for each other. As soon as anything else runs
    # they so keep a core from the one that they wait for: a job took four times as long.
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & user_variables.keys():
        new_variables["OMP_WAIT_POLICY"] = "PASSIVE"
    return new_variables


def keep_freed_memory() -> None:
    """Have glibc keep the memory that this process frees, for what it needs next.

    By default it gives large pieces back to the kernel, which clears each page when it is asked for
    again: a step on the processor, whose activations are such pieces, takes longer for it. The most
    that the process has in use at a time does not change.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)  # no piece comes from the kernel on its own
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # nothing goes back


def gpus() -> list[str]:
    """The GPUs as CUDA_VISIBLE_DEVICES names them: those it lists, else all that nvidia-smi does.

    ROCm heeds the same variable.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return [name for name in names if name and name != "-1"]

    return [str(index) for index in range(_nvidia_gpu_count())]


def _nvidia_gpu_count() -> int:
    """How many GPUs nvidia-smi lists; 0 without it."""
    try:
        listing = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return 0

    # Slices of a card, indented below it, are left to CUDA_VISIBLE_DEVICES.
    return sum(line.startswith("GPU ") for line in listing.split("\n"))
