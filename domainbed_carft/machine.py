"""What of this machine a process may use: cores, memory, GPUs."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

# By this variable a launcher tells a job how many cores are its share.
CORES = "DOMAINBED_CORES"

# By this one, how many processes it is to have, each with a GPU of its own.
PROCESSES = "DOMAINBED_PROCESSES"


def cores(root: Path = Path("/")) -> int:
    """The cores this process may use: those it is bound to, or fewer if a cgroup has a quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    counts = [len(affinity(0)) if affinity else os.cpu_count() or 1]
    for limit in _cgroup_limits("cpu.max", root):
        quota, period = limit.split()
        if quota != "max":
            counts.append(math.ceil(int(quota) / int(period)))
    return max(1, min(counts))


def memory(root: Path = Path("/")) -> int:
    """The bytes of memory this process may use: the machine's, or fewer if a cgroup has a limit."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    sizes += [int(limit) for limit in _cgroup_limits("memory.max", root) if limit != "max"]
    return min(sizes)


def _cgroup_limits(name: str, root: Path) -> list[str]:
    """What the file ``name`` says in the process's own group of version 2, and those around it."""
    found = []
    with contextlib.suppress(OSError):
        listed = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        for inside in (Path(line[len("0::/") :]) for line in listed if line.startswith("0::/")):
            for group in (inside, *inside.parents):
                with contextlib.suppress(OSError):
                    limit = root / "sys/fs/cgroup" / group / name
                    found.append(limit.read_text(encoding="utf-8").strip())
    return found


def share(cores: int, on_gpu: bool) -> tuple[int, int]:
    """Threads that compute and processes that load, for a job on so many cores.

    Together they are no more than the cores, but for one that loads beside a GPU. A quarter of the
    cores load where the processor computes, since a step of the smallest CLIP takes it four times
    as long as the pictures do; all but one where a GPU computes. A rule of ours.
    """
    loaders = max(1, cores - 1) if on_gpu else cores // 4
    return max(1, cores - loaders), loaders


def variables(
    cores: int, on_gpu: bool, kept: Mapping[str, str], processes: int = 1
) -> dict[str, str]:
    """What a launcher sets for a job on so many cores; what is ``kept`` stays as it is there."""
    if processes < 2 and (told := kept.get(PROCESSES, "")).isdecimal():
        processes = max(1, int(told))  # the user's, where there are no GPUs to give
    threads = str(share(max(1, cores // processes), on_gpu)[0])
    found = {CORES: str(cores)}
    if processes > 1:
        found[PROCESSES] = str(processes)
    if "OMP_NUM_THREADS" not in kept:
        # OpenMP's is read by OpenBLAS and MKL too, but MKL's own wins, if it is set.
        found |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    # By default OpenMP's threads spin while they wait for each other. As soon as anything else runs
    # they so keep a core from the one that they wait for: a job took four times as long.
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & kept.keys():
        found["OMP_WAIT_POLICY"] = "PASSIVE"
    return found


def keep_freed_memory() -> None:
    """Have glibc keep the memory that this process frees, for what it needs next.

    By default it gives large pieces back to the kernel, which clears each page when it is asked for
    again: a step on the processor, whose activations are such pieces, takes longer for it. The most
    that the process has in use at a time does not change.
    """
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no piece comes from the kernel on its own
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: nothing goes back


def gpus() -> list[str]:
    """The GPUs as CUDA_VISIBLE_DEVICES names them: those it lists, else those of nvidia-smi."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        names = [name.strip() for name in listed.split(",")]
        return [name for name in names if name and name != "-1"]
    try:
        told = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    # Slices of a card, indented below it, are left to CUDA_VISIBLE_DEVICES.
    return [str(index) for index in range(f"\n{told}".count("\nGPU "))]
