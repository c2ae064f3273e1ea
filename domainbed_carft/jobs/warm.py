"""A warm process: it has imported what each job of a launch imports, and jobs are forks of it.

What a job is told, and gets from the system, is what a process of its own would get (`forking`).
With multiprocessing's forkserver, jobs would count as ended when it dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from domainbed_carft.jobs.folder import INHERITED

# Any value but 0 has all jobs start cold.
SWITCH = "DOMAINBED_COLD_START"

TRAIN = "domainbed.scripts.train"

# What may differ from job to job, since nothing reads it while it is imported.
SET_LATE = ("CUDA_VISIBLE_DEVICES", "WANDB_RUN_GROUP", INHERITED)


@dataclass(frozen=True)
class Process:
    """A job that was forked, with as much of subprocess.Popen as launchers use."""

    pid: int
    told: IO[str]

    def wait(self) -> int:
        """Its exit status, negative for a signal; -15 if it is gone and nobody knows how."""
        with self.told:
            return int(self.told.readline() or -signal.SIGTERM)

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


class Warm:
    """Starts jobs warm, inside a block; the warm process is made with the first, and as it wants.

    Jobs ``apart`` get a session of their own, no input, and no output but standard error; others
    share this process's session and streams. So does the warm process.
    """

    def __init__(self, apart: bool) -> None:
        self._apart = apart
        self._one_at_a_time = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._control.close()
            self._process.wait()

    def start(
        self, words: Sequence[str], environment: Mapping[str, str], *descriptors: int
    ) -> Process | None:
        """Start a job; None if it has to start cold (see docs/sweeps.md).

        ``descriptors``: for a job apart, those of its lock and its standard error.
        """
        if sys.platform != "linux" or environment.get(SWITCH, "") not in ("", "0"):
            return None
        if list(words[:3]) != [sys.executable, "-m", TRAIN]:
            return None
        early = {name: value for name, value in environment.items() if name not in SET_LATE}
        late = {name: environment[name] for name in SET_LATE if name in environment}
        request = json.dumps({"arguments": words[3:], "variables": late, "apart": self._apart})
        with self._one_at_a_time, contextlib.suppress(OSError):
            if self._process is None:
                self._make(early)
            if self._made_for != (early, os.getcwd()):
                return None
            read, write = os.pipe()
            told = os.fdopen(read)
            with os.fdopen(write, "wb"):  # an OSError: the process is dead, the request too long
                socket.send_fds(self._control, [request.encode()], [write, *descriptors])
            if pid := told.readline():
                return Process(int(pid), told)
        return None

    def _make(self, environment: dict[str, str]) -> None:
        self._made_for = environment, os.getcwd()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        streams = subprocess.DEVNULL if self._apart else None
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "domainbed_carft.jobs.forking", str(theirs.fileno())],
                env=environment, pass_fds=(theirs.fileno(),), start_new_session=self._apart,
                stdin=streams, stdout=streams, stderr=streams,
            )  # fmt: skip
