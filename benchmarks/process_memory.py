"""The memory that a process and its descendants hold together, looked at while they run."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from pathlib import Path

MIB = 1024  # in the kernel's KiB


class Memory(threading.Thread):
    """Looks at the memory of a process and its descendants until it is stopped."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.peak = self.first_process = self.largest_other = self.processes = 0
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.5):
            sizes = [size for pid in family(self.pid) if (size := proportional(pid))]
            if sizes and sum(sizes) > self.peak:
                self.peak, self.processes = sum(sizes), len(sizes)
                self.first_process, self.largest_other = sizes[0], max(sizes[1:], default=0)

    def said(self) -> str:
        """Empty for what ended before the first look."""
        if not self.peak:
            return ""
        others = f", each other at most {self.largest_other // MIB:,} MiB"
        return (
            f"{self.peak // MIB:,} MiB in {self.processes} process(es), the first "
            f"{self.first_process // MIB:,} MiB{others if self.processes > 1 else ''}; "
        )


def family(root: int) -> list[int]:
    """A process and its descendants, as far as they are alive."""
    children = defaultdict(list)
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                after_name = Path("/proc", entry, "stat").read_text().rpartition(")")[2]
            except OSError:
                continue
            children[int(after_name.split()[1])].append(int(entry))
    found = [root]
    for pid in found:
        found += children[pid]
    return found


def proportional(pid: int) -> int:
    """What a process holds, without its program files, in KiB; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    held = ("Pss_Anon:", "Pss_Shmem:")
    return sum(int(line.split()[1]) for line in lines if line.startswith(held))
