"""Digests of the pictures that a run is evaluated on: of names, labels, sizes and times."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from domainbed_carft.data.picture_files import Member


def digest_of_pictures(environment: Any, positions: Sequence[int]) -> str:
    """The SHA-256 of the pictures of a host's environment at these positions, in order.

    Pictures in files count by their path below the environment's folder, label, size and time of
    change; those of a tensor by the tensor itself. Of other data sets only the labels are known,
    and the number of pictures. Raises OSError for a file that is missing.
    """
    digest = hashlib.sha256()
    for line in _descriptions(environment, positions):
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def _descriptions(environment: Any, positions: Sequence[int]) -> Iterator[str]:
    samples = getattr(environment, "samples", None)
    if samples is not None:
        root = str(getattr(environment, "root", ""))
        for position in positions:
            path, label = samples[position]
            yield f"{_file_description(path, root)} {label}"
        return

    tensors = getattr(environment, "tensors", None)
    if tensors is not None:
        for tensor in tensors:
            part = tensor[list(positions)].contiguous()
            yield hashlib.sha256(part.numpy().tobytes()).hexdigest()
        return

    yield f"{len(environment)} pictures"
    targets = getattr(environment, "targets", None)
    if targets is not None:
        yield " ".join(str(int(targets[position])) for position in positions)


def _file_description(path: str | Member, root: str) -> str:
    """A picture's path below ``root``, size and time of change; in a shard its offset, too."""
    if isinstance(path, Member):
        name = path.path.removeprefix(root)
        return f"{name} {path.offset} {path.size} {_shard_time(path.path)}"

    status = os.stat(path)
    return f"{path.removeprefix(root)} {status.st_size} {status.st_mtime_ns}"


@functools.lru_cache(maxsize=1 << 16)
def _shard_time(path: str) -> int:
    return os.stat(path).st_mtime_ns
