"""Seeds, splits, accuracy, and printing.

Interface of upstream file domainbed/lib/misc.py at b93c22a, for the functions that the scripts use.
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

from domainbed_carft import escaping, files
from domainbed_carft.jobs.job import seed_hash as seed_hash


def plain(value: Any) -> Any:
    """Convert a numpy scalar to a Python value, which JSON can hold; return others unchanged."""
    return value.item() if isinstance(value, np.generic) else value


class SplitDataset(torch.utils.data.Subset[Any]):
    """A subset of a dataset, with upstream's names for the dataset and the positions."""

    @property
    def underlying_dataset(self) -> Any:
        """The complete dataset, under upstream's name."""
        return self.dataset

    @property
    def keys(self) -> Sequence[int]:
        """The positions of the items in the dataset, under upstream's name."""
        return self.indices


def split_dataset(dataset: Any, n: int, seed: int = 0) -> tuple[SplitDataset, SplitDataset]:
    """Shuffle the positions of `dataset` with `seed`; split off the first `n` from the rest."""
    size = len(dataset)
    assert 0 <= n <= size, f"cannot take {n} of {size} items"

    # Upstream's splits are defined by RandomState.shuffle of a list.
    order = list(range(size))
    np.random.RandomState(seed).shuffle(order)
    return SplitDataset(dataset, order[:n]), SplitDataset(dataset, order[n:])


def make_weights_for_balanced_classes(dataset: Any) -> torch.Tensor:
    """Return a weight for each item; the sum is 1, and classes have equal sums."""
    labels = item_labels(dataset)
    counts = Counter(labels)
    return torch.tensor([1 / (counts[label] * len(counts)) for label in labels])


def item_labels(dataset: Any) -> list[int]:
    """Return the label of every item; items are read only if the dataset has no list of labels."""
    labels = _listed_labels(dataset)
    if labels is None:
        labels = (label for _, label in dataset)
    return [int(label) for label in labels]


def _listed_labels(dataset: Any) -> Any:
    """Return the labels of an ImageFolder, a TensorDataset or a subset of these, or None."""
    if type(dataset) in (SplitDataset, torch.utils.data.Subset):  # subclasses can change labels
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
    """Return the share of items that `network.predict` classifies correctly.

    Args:
        network: object whose `predict` returns logits; a single logit is a binary decision at 0.
        loader: batches of inputs and labels.
        weights: weight of each item, or None for equal weights.
        device: the network's device.
        all_reduce: function that sums tensors over the job's processes, in place.
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
    """Print one row of a table, with every cell padded or cut to `colwidth` characters."""
    texts = (f"{v:.10f}" if isinstance(v, (float, np.floating)) else str(v) for v in row)
    cells = [escaping.printable(cell).ljust(colwidth)[:colwidth] for cell in texts]
    separator = " & " if latex else "  "
    end = "\\\\" if latex else ""
    print(separator.join(cells), end)  # a text row ends in a blank, as in upstream


def print_separator() -> None:
    """Print a line of equals signs, under upstream's name."""
    print("=" * 80)


class Tee:
    """A text stream that writes to another stream (default: standard output) and to a file."""

    def __init__(self, fname: str, mode: str = "a", stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._file = open(  # noqa: SIM115 - closed by close()
            fname, mode, encoding="utf-8", errors="backslashreplace", opener=files.open_nofollow
        )

    def write(self, message: str) -> int:
        """Write to both without control characters; a full disk or a closed file is ignored."""
        message = escaping.escape_output(message)
        self._stream.write(message)
        self._stream.flush()
        # A logger can use this stream after the run. A full disk is reported when records or
        # weights are written.
        if not self._file.closed:
            with contextlib.suppress(OSError):
                self._file.write(message)
                self._file.flush()
        return len(message)

    def flush(self) -> None:
        """Flush the stream; the file is flushed at each write."""
        self._stream.flush()

    def close(self) -> None:
        """Close the file, but not the stream."""
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        # Libraries read isatty, encoding and other attributes of a stream.
        if name.startswith("_"):  # avoids endless recursion in a copy, which has no _stream yet
            raise AttributeError(name)
        return getattr(self._stream, name)


@contextlib.contextmanager
def tee_output(folder: str) -> Iterator[None]:
    """Append the block's output to out.txt and err.txt in `folder`."""
    with (
        contextlib.closing(Tee(os.path.join(folder, "out.txt"), stream=sys.stdout)) as out,
        contextlib.closing(Tee(os.path.join(folder, "err.txt"), stream=sys.stderr)) as err,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        yield
