"""What of this machine a process may use: cores, memory, GPUs."""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path


def cores() -> int:
    """The cores this process may use: those it is bound to, or fewer if a cgroup has a quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    bound = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = cpu_quota()
    return bound if quota is None else max(1, min(bound, math.ceil(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The smallest quota of this process's cgroups, in cores; None if there is none."""
    quotas = []
    for folder in _groups(root, "cpu"):
        quota, period = _words(folder / "cpu.max") or (
            _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
            or ["max"] * 2
        )
        if quota.isdecimal() and period.isdecimal() and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that new processes could take: the machine's, or fewer if a cgroup has a limit."""
    sizes = []
    for line in _lines(root / "proc/meminfo"):
        name, _, size = line.partition(":")
        if name == "MemAvailable":
            sizes.append(1024 * int(size.split()[0]))
    for folder in _groups(root, "memory"):
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            values = _words(folder / limit) + _words(folder / used)
            if len(values) == 2 and all(map(str.isdecimal, values)):
                # Version 1 spells "no limit" as a number that no machine has; min() drops it.
                sizes.append(max(0, int(values[0]) - int(values[1])))
    return min(sizes, default=None)


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
    return [str(index) for index, _ in enumerate(filter(_is_gpu, told.splitlines()))]


def _is_gpu(line: str) -> bool:
    return line.startswith("GPU ")


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's cgroup and of those around it, of either version."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            mount = root / "sys/fs/cgroup" / controller
        else:
            continue
        inside = Path(path.lstrip("/"))
        yield from (mount / part for part in (inside, *inside.parents))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()
