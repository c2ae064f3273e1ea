"""The launcher's side of a fork server, which has imported what each job of a launch imports.

What a job gets as arguments, and from the system, is what a process of its own would get. With
multiprocessing's forkserver, jobs would count as ended when it dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO

from domainbed_carft import process_variables
from domainbed_carft.jobs import fork_server_process
from domainbed_carft.jobs.folder import LOCK_VARIABLE
from domainbed_carft.jobs.fork_server_process import Request

SWITCH = process_variables.COLD_START.name

TRAIN = "domainbed.scripts.train"

# What may differ from job to job, since nothing reads it while it is imported.
VARIABLES_OF_JOBS = ("CUDA_VISIBLE_DEVICES", "WANDB_RUN_GROUP", LOCK_VARIABLE)


class Process:
    """A process that was forked, with as much of subprocess.Popen as its users need.

    ``returncode``: the exit status, once `wait` or `poll` has returned it; negative for a signal,
    -15 if the guard of the process was killed.
    """

    def __init__(self, pid: int, answers: IO[bytes]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._answers = answers  # a pipe in which the process's guard writes the exit status

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process, and return the exit status.

        Raises subprocess.TimeoutExpired if that takes more than ``timeout`` seconds.
        """
        if self.returncode is None:
            poller = select.poll()
            poller.register(self._answers, select.POLLIN)
            if not poller.poll(None if timeout is None else 1000 * timeout):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            with self._answers:
                self.returncode = int(self._answers.readline() or -signal.SIGTERM)
        return self.returncode

    def poll(self) -> int | None:
        """The exit status; None as long as the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(timeout=0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send the process a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


class ForkServer:
    """Starts processes as forks of one that has imported what ``module`` imports.

    A context manager: the server starts with the first process that it can fork, and ends with the
    block. ``detached`` processes get a session of their own, no input, and no output but the
    streams that they are given; others share this process's session and streams. So does the
    server. ``module``: what jobs run as ``python -m``.
    """

    def __init__(self, detached: bool, module: str = TRAIN) -> None:
        self._detached = detached
        self._module = module
        self._starting = threading.Lock()  # held while a process is started
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._control.close()
            self._process.wait()

    def start(
        self, command: Sequence[str], variables: Mapping[str, str], *descriptors: int
    ) -> Process | None:
        """Start a job; None if it has to start cold.

        ``variables``: all those of its process; ``descriptors``: of a detached job its lock and
        standard error.
        """
        if sys.platform != "linux" or variables.get(SWITCH, "") not in ("", "0"):
            return None
        if list(command[:3]) != [sys.executable, "-m", self._module]:
            return None

        request = Request(
            module=self._module,
            arguments=list(command[3:]),
            variables={name: variables[name] for name in VARIABLES_OF_JOBS if name in variables},
            is_detached=self._detached,
            descriptors=[LOCK_VARIABLE, "stderr"] if self._detached else [],
        )
        server_variables = {
            name: value for name, value in variables.items() if name not in VARIABLES_OF_JOBS
        }
        with self._starting, contextlib.suppress(OSError):
            self._start_server(server_variables)
            if self._started_with != (server_variables, os.getcwd()):
                return None
            return self._send(request, descriptors)
        return None

    def fork(
        self, request: Request, server_variables: Mapping[str, str], *descriptors: int
    ) -> Process | None:
        """Start a process, whatever it is; None if it cannot be forked.

        ``server_variables``: all those of the server, should it not run yet; ``descriptors``: those
        that the request names. Raises OSError if the server has died, or the request is too long.
        """
        with self._starting:
            self._start_server(server_variables)
            return self._send(request, descriptors)

    def _start_server(self, variables: Mapping[str, str]) -> None:
        """Start the server, unless it has been started."""
        if self._process is not None:
            return

        self._started_with = (dict(variables), os.getcwd())
        self._control, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stream = subprocess.DEVNULL if self._detached else None
        with child_end:
            words = [sys.executable, "-m", fork_server_process.__name__]
            self._process = subprocess.Popen(
                [*words, str(child_end.fileno()), self._module],
                env=variables,
                pass_fds=(child_end.fileno(),),
                start_new_session=self._detached,
                stdin=stream,
                stdout=stream,
                stderr=stream,
            )

    def _send(self, request: Request, descriptors: Sequence[int]) -> Process | None:
        """Ask the server for a process; None if it does not answer.

        Raises OSError if the server is dead, or the request too long.
        """
        read_end, write_end = os.pipe()
        answers = os.fdopen(read_end, "rb", buffering=0)  # so that a wait sees what is unread
        with os.fdopen(write_end, "wb"):
            message = json.dumps(request._asdict()).encode()
            socket.send_fds(self._control, [message], [write_end, *descriptors])

        pid = answers.readline()
        return Process(int(pid), answers) if pid else None
