"""Batches on their way from a loader's process, in memory that both processes share.

Torch shares through /dev/shm, of which containers have 64 MB by default, and does so in a thread of
its queue: if that fails, the batch is dropped and the job waits without end. Here the loader's main
thread shares a batch, in memory that has no file system, and a failure comes in the batch's place.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.data import default_collate, get_worker_info
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from domainbed_carft.errors import TransientError
from domainbed_carft.machine import devices

SHARED_MEMORY = "/dev/shm"


class SharedBatch:
    """A batch as bytes that name its shared memory; unpickled, it is the batch again."""

    def __init__(self, batch: Any) -> None:
        shared = pytree.tree_map_only(torch.Tensor, _in_shared_memory, batch)
        self._content = bytes(ForkingPickler.dumps(shared))

    def __reduce__(self) -> Any:
        return pickle.loads, (self._content,)


def collated(items: Any) -> Any:
    """A batch of items, or what is a batch or a failure already; shared in a loader's process.

    Where it cannot be shared, a TransientError that says why comes instead.
    """
    if get_worker_info() is None:
        return default_collate(items) if isinstance(items, list) else items
    if isinstance(items, list):
        # Torch's own function would stack tensors in /dev/shm.
        items = collate(items, collate_fn_map={**default_collate_fn_map, torch.Tensor: _stack})
    if isinstance(items, TransientError):
        return items
    try:
        return SharedBatch(items)
    except (OSError, RuntimeError) as error:
        return unshared(error)


def unshared(error: Exception) -> TransientError:
    """What to raise where the processes of a job cannot share memory."""
    state = "cannot be read"
    remedy = "Give the container more shared memory (docker run --shm-size=1g)"
    with contextlib.suppress(OSError):
        status = os.statvfs(SHARED_MEMORY)
        free, total = (
            count * status.f_frsize >> 20 for count in (status.f_bavail, status.f_blocks)
        )
        state = f"has {total} MiB, of which {free} are free"
        if status.f_flag & os.ST_RDONLY:
            state = "is read-only"
            remedy = "Mount it writable"
    reason = " ".join(str(error).split())
    return TransientError(
        f"loader processes cannot share memory with this job ({reason}); {SHARED_MEMORY} {state}. "
        f"{remedy}, or load without processes: --workers 0"
    )


def _stack(tensors: list[torch.Tensor], **_: Any) -> torch.Tensor:
    return torch.stack(tensors)


def _in_shared_memory(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in shared memory. Raises OSError, or RuntimeError, if there is none."""
    is_plain = type(tensor) is torch.Tensor and tensor.layout is torch.strided
    if not is_plain or tensor.device != devices.CPU or not tensor.numel():
        return tensor  # torch's own way
    size = tensor.numel() * tensor.element_size()
    try:
        descriptor = os.memfd_create("batch", os.MFD_CLOEXEC)
    except OSError:  # a sandbox without it
        _require_space(size)
        return tensor.share_memory_()
    try:
        os.posix_fallocate(descriptor, 0, size)
        untyped_storage: Any = torch.UntypedStorage  # whose stub lacks the method
        storage = untyped_storage._new_shared_fd_cpu(descriptor, size)
    finally:
        os.close(descriptor)
    shared: Any = torch.empty(0, dtype=tensor.dtype)
    shared.set_(storage, 0, tensor.shape)
    return shared.copy_(tensor)


def _require_space(size: int) -> None:
    """Raise OSError if /dev/shm is too small: some torches find out when they are killed by it."""
    status = os.statvfs(SHARED_MEMORY)
    if status.f_bavail * status.f_frsize < size:
        raise OSError(f"no space for {size:,} bytes")
