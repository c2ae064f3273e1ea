"""Start and join the processes that train one job together.

Either torchrun or the first process starts them. Upstream has no equivalent.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import torch.distributed as dist

from domainbed.lib import checks, stopping
from domainbed.lib.process_group import (
    GRACE_SECONDS,
    SINGLE_PROCESS,
    ProcessExitedError,
    ProcessGroup,
)
from domainbed_carft import machine, process_variables
from domainbed_carft.errors import CarftError, brief, raise_for
from domainbed_carft.machine import devices

# Time for gloo's threads to free the tensors of the last collective.
_LAST_COLLECTIVE_SECONDS = 0.1


def _int_variable(name: str, default: int, minimum: int = 0) -> int:
    """Read a number from a variable of torchrun; raise CarftError if it is below the minimum."""
    value = os.environ.get(name) or str(default)
    if value.isdecimal() and int(value) >= minimum:
        return int(value)
    raise CarftError(
        f"the environment variable {name}, which torchrun sets, is {value!r}, expected a whole "
        f"number of at least {minimum}; unset it to train in one process"
    )


def is_first() -> bool:
    """Return True for the first or only process of a job, according to torchrun's variables."""
    return _int_variable("WORLD_SIZE", 1, minimum=1) < 2 or _int_variable("RANK", 0) == 0


@contextlib.contextmanager
def join_process_group(processes: int, arguments: Sequence[str]) -> Iterator[ProcessGroup]:
    """Join the processes that torchrun has started, or start them.

    On GPUs each process uses the GPU of its local rank. If the first process is killed, the
    processes that it has started end with it.

    Args:
        processes: number of processes to start without torchrun.
        arguments: the command line of `train`, for the started processes.

    Raises:
        CarftError: the number is below 1, there are too few GPUs, or the processes cannot join.
    """
    raise_for(checks.range_problems(f"--processes (or {machine.PROCESSES})", processes, 1))
    size = _int_variable("WORLD_SIZE", processes, minimum=1)
    if size < 2:
        yield SINGLE_PROCESS
        return

    local_size = _int_variable("LOCAL_WORLD_SIZE", size, minimum=1)
    _require_gpus(local_size)
    is_over = threading.Event()
    process_group = SINGLE_PROCESS
    try:
        process_group = _create_process_group(size, local_size, arguments)
        for rank, _ in enumerate(process_group.children, 1):
            threading.Thread(
                target=process_group.end_with_child, args=(rank, is_over), daemon=True
            ).start()
        _initialise_torch(process_group)
    except (RuntimeError, ValueError) as error:  # ValueError: a variable of torchrun is missing
        is_over.set()
        _wait_for(process_group.children)
        raise CarftError(
            f"the {size} processes of this job cannot join: {brief(error)}. Start them with "
            "torchrun or --processes, or unset WORLD_SIZE to train in one process"
        ) from error

    try:
        yield process_group
    except Exception as error:
        if not process_group.is_leader and not isinstance(error, ProcessExitedError):
            process_group.report_failure(error)
        raise
    finally:
        _destroy_torch_process_group()
        _wait_for(process_group.children)
        is_over.set()


def _require_gpus(local_size: int) -> None:
    """Raise CarftError if this machine has GPUs, but fewer GPUs than processes of the job."""
    count = devices.gpu_count()
    if devices.is_gpu(devices.default_device()) and count < local_size:
        raise CarftError(
            f"{local_size} processes need a GPU each, but this machine has {count}; start fewer "
            "processes"
        )


def _create_process_group(size: int, local_size: int, arguments: Sequence[str]) -> ProcessGroup:
    """Create the process group, and start the other processes unless torchrun did."""
    if "WORLD_SIZE" in os.environ:
        rank = _int_variable("RANK", 0)
        parent = process_variables.PARENT.read()
        if parent:  # the first process; not set by torchrun
            stopping.end_with_parent(int(parent))
        _require_address()
        store = next(dist.rendezvous("env://"))[0]
        return ProcessGroup(rank, size, local_size, store)

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    children = _start_children(size, store.port, arguments)
    return ProcessGroup(0, size, local_size, store, children)


def _require_address() -> None:
    """Raise ValueError if MASTER_ADDR does not resolve; torch would retry forever."""
    address = os.environ.get("MASTER_ADDR")
    try:
        if address:
            socket.getaddrinfo(address, None)
    except OSError as error:
        raise ValueError(f"MASTER_ADDR {address!r} does not resolve: {error.strerror}") from error


def _initialise_torch(process_group: ProcessGroup) -> None:
    """Initialise torch's process group, which waits for all processes."""
    if devices.is_gpu(devices.default_device()):
        devices.use_gpu(_int_variable("LOCAL_RANK", process_group.rank))
    dist.init_process_group(
        devices.process_group_backend(),
        store=process_group.store,
        rank=process_group.rank,
        world_size=process_group.size,
    )


def _destroy_torch_process_group() -> None:
    """End torch's process group after its threads have freed the last collective.

    If such a thread holds the last reference to a tensor, it needs Python's interpreter lock to
    free the tensor. Destroying the group holds this lock and waits for the thread, which was a
    deadlock on torch 2.1.
    """
    time.sleep(_LAST_COLLECTIVE_SECONDS)  # releases the interpreter lock
    dist.destroy_process_group()


def _start_children(
    size: int, port: int, arguments: Sequence[str]
) -> list[subprocess.Popen[bytes]]:
    """Start the processes 1, 2, ... of a job on this machine, with torchrun's variables."""
    command = [sys.executable, "-m", "domainbed.scripts.train", *arguments]
    children = []
    for rank in range(1, size):
        variables = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            process_variables.PARENT.name: str(os.getpid()),
        }
        child = subprocess.Popen(command, env={**os.environ, **variables}, stdin=subprocess.DEVNULL)
        children.append(child)
    return children


def _wait_for(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for processes to end, and kill each that takes longer than GRACE_SECONDS."""
    for child in children:
        try:
            child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
