"""Transfer of batches from loader processes through shared memory.

Torch shares tensors through /dev/shm, which has 64 MB in a container by default, and does so in a
thread of its queue: if that fails, the batch is lost and the job waits forever. Here the loader's
main thread puts a batch into anonymous shared memory, and returns an error instead of the batch if
that fails.
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
    """A batch as bytes that refer to its shared memory; unpickling it returns the batch."""

    def __init__(self, batch: Any) -> None:
        shared = pytree.tree_map_only(torch.Tensor, _in_shared_memory, batch)
        self._content = bytes(ForkingPickler.dumps(shared))

    def __reduce__(self) -> Any:
        return pickle.loads, (self._content,)


def collate_batch(items: Any) -> Any:
    """Collate items into a batch, and share the batch if this is a loader process.

    Args:
        items: A list of items, a batch, or a TransientError.

    Returns:
        The batch. A TransientError if `items` is one, or if the batch cannot be shared.
    """
    if get_worker_info() is None:
        return default_collate(items) if isinstance(items, list) else items
    if isinstance(items, list):
        # Torch's default function would stack tensors in /dev/shm.
        items = collate(items, collate_fn_map={**default_collate_fn_map, torch.Tensor: _stack})
    if isinstance(items, TransientError):
        return items
    try:
        return SharedBatch(items)
    except (OSError, RuntimeError) as error:
        return sharing_error(error)


def sharing_error(error: Exception) -> TransientError:
    """Return the error to raise if the processes of a job cannot share memory."""
    state = "cannot be read"
    hint = "Increase the container's shared memory (docker run --shm-size=1g)"

    with contextlib.suppress(OSError):
        status = os.statvfs(SHARED_MEMORY)
        free, total = (
            count * status.f_frsize >> 20 for count in (status.f_bavail, status.f_blocks)
        )
        state = f"has {free} of {total} MiB free"
        if status.f_flag & os.ST_RDONLY:
            state = "is read-only"
            hint = "Mount it writable"

    reason = " ".join(str(error).split())
    return TransientError(
        f"loader processes cannot share memory with this job ({reason}); {SHARED_MEMORY} {state}. "
        f"{hint}, or load without extra processes (--workers 0)"
    )


def _stack(tensors: list[torch.Tensor], **_: Any) -> torch.Tensor:
    return torch.stack(tensors)


def _in_shared_memory(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor into shared memory; raise OSError or RuntimeError if there is none."""
    is_plain = type(tensor) is torch.Tensor and tensor.layout is torch.strided
    if not is_plain or tensor.device != devices.CPU or not tensor.numel():
        return tensor  # torch shares it

    size = tensor.numel() * tensor.element_size()
    try:
        descriptor = os.memfd_create("batch", os.MFD_CLOEXEC)
    except OSError:  # a sandbox without memfd_create
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
    """Raise OSError if /dev/shm is too small, which kills the process in some torch versions."""
    status = os.statvfs(SHARED_MEMORY)
    if status.f_bavail * status.f_frsize < size:
        raise OSError(f"no space for {size:,} bytes")
