"""What of this machine a process may use: cores, GPUs."""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path


def cores(root: Path = Path("/")) -> int:
    """The cores this process may use: those it is bound to, or fewer if a cgroup has a quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    bound = len(affinity(0)) if affinity else os.cpu_count() or 1
    limits = [text.split() for text in _of_cgroups("cpu.max", root)]
    quotas = [math.ceil(int(quota) / int(period)) for quota, period in limits if quota != "max"]
    return max(1, min([bound, *quotas]))


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


def _of_cgroups(file: str, root: Path) -> Iterator[str]:
    """What ``file`` holds for this process's cgroup and for those around it, of version 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in (line for line in lines if line.startswith("0::/")):
        inside = Path(line[len("0::/") :])
        for group in (inside, *inside.parents):
            try:
                yield (root / "sys/fs/cgroup" / group / file).read_text(encoding="utf-8")
            except OSError:
                continue
