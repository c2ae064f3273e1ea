"""Seeds, splits, accuracy, and printing.

Interface of upstream file domainbed/lib/misc.py at b93c22a, as far as the scripts need it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

import numpy as np
import torch

from domainbed_carft import files
from domainbed_carft.jobs.job import seed_hash as seed_hash


def plain(value: Any) -> Any:
    """A numpy scalar as the Python value that JSON can hold; all else as it is."""
    return value.item() if isinstance(value, np.generic) else value


class SplitDataset(torch.utils.data.Subset[Any]):
    """Some items of a dataset, with upstream's names for the dataset and the positions."""

    @property
    def underlying_dataset(self) -> Any:
        """The whole dataset, by upstream's name."""
        return self.dataset

    @property
    def keys(self) -> Sequence[int]:
        """The positions in it, by upstream's name."""
        return self.indices


def split_dataset(dataset: Any, n: int, seed: int = 0) -> tuple[SplitDataset, SplitDataset]:
    """Shuffle the positions of `dataset` with `seed`; split off the first `n` from the rest."""
    size = len(dataset)
    assert 0 <= n <= size, f"cannot take {n} of {size} items"

    # RandomState.shuffle of a list: the draw that upstream's splits are defined by.
    order = list(range(size))
    np.random.RandomState(seed).shuffle(order)
    return SplitDataset(dataset, order[:n]), SplitDataset(dataset, order[n:])


def make_weights_for_balanced_classes(dataset: Any) -> torch.Tensor:
    """Return a weight for each item, summing to 1, the same total for each class present."""
    labels = labels_of(dataset)
    counts = Counter(labels)
    return torch.tensor([1 / (counts[label] * len(counts)) for label in labels])


def labels_of(dataset: Any) -> list[int]:
    """Return every item's label, without reading the items where the dataset keeps a list."""
    labels = _listed_labels(dataset)
    if labels is None:
        labels = (label for _, label in dataset)
    return [int(label) for label in labels]


def _listed_labels(dataset: Any) -> Any:
    """The labels of an ImageFolder, a TensorDataset or a part of one; else None."""
    if type(dataset) in (SplitDataset, torch.utils.data.Subset):  # others may change labels
        all_labels = _listed_labels(dataset.dataset)
        return None if all_labels is None else [all_labels[index] for index in dataset.indices]

    if type(dataset) is torch.utils.data.TensorDataset and len(dataset.tensors) == 2:
        return dataset.tensors[1].tolist()

    targets = getattr(dataset, "targets", None)
    is_transformed = getattr(dataset, "target_transform", None) is not None
    if targets is None or is_transformed or len(targets) != len(dataset):
        return None
    return targets


def accuracy(
    network: Any,
    loader: Iterable[tuple[torch.Tensor, torch.Tensor]],
    weights: torch.Tensor | None,
    device: str | torch.device,
    all_reduce: Callable[[list[torch.Tensor]], None] | None = None,
) -> float:
    """Return the share of items that `network.predict` gets right, weighted by `weights` if given.

    A single logit is a binary decision at 0. `all_reduce` sums tensors over processes, in place.
    """
    correct = torch.zeros((), dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    n_items = 0

    network.eval()
    with torch.no_grad():
        for inputs, labels in loader:
            logits = network.predict(inputs.to(device))
            is_binary = logits.size(1) == 1
            predictions = logits.gt(0).view(-1) if is_binary else logits.argmax(1)
            hits = predictions.eq(labels.to(device).view(-1)).cpu().double()

            item_weights = torch.ones_like(hits)
            if weights is not None:
                item_weights = weights[n_items : n_items + len(hits)].cpu().double()
            n_items += len(hits)
            correct = correct + (hits * item_weights).sum()
            total = total + item_weights.sum()
    network.train()

    sums = torch.stack([correct, total])
    if all_reduce:
        all_reduce([sums])
    return float(sums[0] / sums[1])


def print_row(row: Iterable[Any], colwidth: int = 10, latex: bool = False) -> None:
    """Print one row of a table, every cell filled up or cut to `colwidth` characters."""
    texts = (f"{v:.10f}" if isinstance(v, (float, np.floating)) else str(v) for v in row)
    cells = [text.ljust(colwidth)[:colwidth] for text in texts]
    separator = " & " if latex else "  "
    end = "\\\\" if latex else ""
    print(separator.join(cells), end)  # so a text row ends in a blank, as upstream's


def print_separator() -> None:
    """Upstream's name, which scripts import."""
    print("=" * 80)


class Tee:
    """A text stream that writes to another one, standard output if None, and to a file at once."""

    def __init__(self, fname: str, mode: str = "a", stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._file = open(  # noqa: SIM115 - lives as long as we do
            fname, mode, encoding="utf-8", errors="backslashreplace", opener=files.open_nofollow
        )

    def write(self, message: str) -> int:
        """Write to both; a full disk or a closed file is ignored."""
        self._stream.write(message)
        self._stream.flush()
        # A logger may keep us after the run; and a full disk is reported by what matters.
        if not self._file.closed:
            with contextlib.suppress(OSError):
                self._file.write(message)
                self._file.flush()
        return len(message)

    def flush(self) -> None:
        """Flush the other stream; the file is flushed at each write."""
        self._stream.flush()

    def close(self) -> None:
        """Close the file, not the other stream."""
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        # Libraries ask a stream for isatty, encoding and the like.
        if name.startswith("_"):  # half made, as a copy is; not to be looked up in itself
            raise AttributeError(name)
        return getattr(self._stream, name)


@contextlib.contextmanager
def tee_output(folder: str) -> Iterator[None]:
    """Inside the block, append what is printed to out.txt and err.txt in `folder`."""
    with (
        contextlib.closing(Tee(os.path.join(folder, "out.txt"), stream=sys.stdout)) as out,
        contextlib.closing(Tee(os.path.join(folder, "err.txt"), stream=sys.stderr)) as err,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        yield
