"""Passes over the splits of a run: on which device, in which batches, and with a bar."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from domainbed_carft import machine
from domainbed_carft.errors import CarftError
from domainbed_carft.runs.splits import Split

# Below this many pictures starting processes takes longer than they save.
MANY_PICTURES = 5000
MOST_WORKERS = 8


def choose_device(asked: str | None) -> torch.device:
    """``asked``, such as "cuda:1", else the GPU if there is one.

    Convolutions are made repeatable, as DomainBed's train makes them. Raises CarftError for what is
    no device, or is not there.
    """
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    name = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"a {device.type}")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise CarftError(
            f"--device {name} cannot be used ({reason}); expected cpu, cuda or cuda:N, N being the "
            "number of a GPU of this machine"
        ) from error
    return device


def choose_workers(asked: int | None, pictures: int) -> int:
    """``asked`` processes that load pictures, else one a core where there are many pictures."""
    if asked is not None:
        return asked
    return min(MOST_WORKERS, machine.cores()) if pictures >= MANY_PICTURES else 0


def batches(
    splits: Sequence[Split], batch_size: int, workers: int | None
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The number of a split, pictures and labels, for all pictures of all splits, in order.

    Raises CarftError where a picture cannot be read.
    """
    total = sum(map(len, splits))
    processes = choose_workers(workers, total)
    with tqdm(total=total, unit="picture", desc="evaluating", delay=2, disable=None) as bar:
        for number, split in enumerate(splits):
            loader = DataLoader(split.items, batch_size, num_workers=processes)
            try:
                for x, y in loader:
                    yield number, x, y
                    bar.update(len(x))
            except OSError as error:  # of Pillow's, too
                reason = _last_line(error)
                if "--decode" not in reason:  # which our harness says
                    reason += ". `carft data verify --decode` says which"
                raise CarftError(
                    f"a picture of {split.environment} ({split.name}) cannot be read: {reason}"
                ) from error


def _last_line(error: Exception) -> str:
    """What an error says; of a worker's, which is a whole traceback, without the type's name."""
    kind = type(error)
    words = (str(error).strip() or kind.__name__).splitlines()[-1]
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return words.removeprefix(f"{module}{kind.__qualname__}: ")


@contextlib.contextmanager
def memory_told(batch_size: int) -> Iterator[None]:
    """Inside the block, a GPU whose memory does not suffice becomes a CarftError."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise CarftError(
            f"the GPU has too little memory for batches of {batch_size} pictures; give a smaller "
            "--batch_size, or --device cpu"
        ) from error
