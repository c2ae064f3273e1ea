"""Train each algorithm of this package in a checkout of DomainBed or of a fork.

    python benchmarks/checkout_methods.py CHECKOUT
    python benchmarks/checkout_methods.py CHECKOUT --host

The algorithms are found by the checkout's lookup and trained in one process, on random images with
the embedded CLIP model: two steps and a prediction, whose losses are printed. Install this package
and the requirements of the checkout. Exits with status 1 if a loss is not finite.

With --host, the checkout's own algorithms get the embedded CLIP model by `clip_backbone`, and take
two steps on batches of 4 images of EmojiStyles, once with each initial classifier. A line contains
what each step returned, the reason if this package refused the algorithm, or the error if it
failed. The exit status is then 0.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.algorithms import ALGORITHMS

HEADS = ("random", "zero-shot")
DATASET = "EmojiStyles"
TARGET = 0
BATCH_SIZE = 4  # images of each training environment

_Batches = list[tuple[torch.Tensor, torch.Tensor]]


def main() -> int:
    """Print a line for each algorithm; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkout", type=Path, help="folder that contains domainbed/")
    parser.add_argument("--host", action="store_true", help="train the checkout's own algorithms")
    arguments = parser.parse_args()
    checkout = arguments.checkout.resolve()
    if not (checkout / "domainbed").is_dir():
        parser.error(f"expected a checkout of DomainBed in {checkout}")
    sys.path.insert(0, str(checkout))
    os.chdir(checkout)
    registry = importlib.import_module("domainbed.algorithms")
    if not Path(registry.__file__ or "").is_relative_to(checkout):
        parser.error(f"{checkout} does not contain domainbed; {registry.__file__} was imported")

    if arguments.host:
        print_host_table(registry)
        return 0

    all_finite = True
    for name in ALGORITHMS:
        losses = train_two_steps(name, registry)
        all_finite &= all(map(math.isfinite, losses))
        print(f"{name:24} loss " + ", ".join(f"{loss:.4f}" for loss in losses))
    return 0 if all_finite else 1


def train_two_steps(name: str, registry: Any) -> list[float]:
    """Train an algorithm on two environments of four images, and return its losses."""
    hparams_registry = importlib.import_module("domainbed.hparams_registry")
    hparams = hparams_registry.default_hparams(name, "Debug28") | {"lp_steps": 0}
    torch.manual_seed(0)
    batches = [(torch.randn(4, 3, 224, 224), torch.tensor([0, 1, 1, 0])) for _ in range(2)]
    algorithm = registry.get_algorithm_class(name)((3, 224, 224), 2, 2, hparams)
    values = [algorithm.update(batches) for _ in range(2)]
    assert algorithm.predict(batches[0][0]).shape == (4, 2)
    return [value["loss"] for value in values]


def print_host_table(registry: Any) -> None:
    """Print a line for each algorithm of the checkout and each initial classifier, and counts."""
    names = [name for name in registry.ALGORITHMS if name not in ALGORITHMS]
    dataset_class = getattr(importlib.import_module("domainbed.datasets"), DATASET)
    dataset = dataset_class("", [TARGET], make_host_hparams("ERM", HEADS[0]))
    batches = draw_batches(dataset)

    counts: dict[str, Counter[str]] = {head: Counter() for head in HEADS}
    for name in names:
        for head in HEADS:
            end, detail = try_host_algorithm(name, head, registry, dataset, batches)
            counts[head][end] += 1
            print(f"{name:14} {head:9} {end:7} {detail}", flush=True)

    for head in HEADS:
        parts = [f"{count} {end}" for end, count in counts[head].items()]
        print(f"{head}: {len(names)} algorithms, {', '.join(parts)}")


def draw_batches(dataset: Any) -> _Batches:
    """Return a batch of each training environment, with images of several classes."""
    batches = []
    for number, environment in enumerate(dataset):
        if number == TARGET:
            continue
        positions = torch.linspace(0, len(environment) - 1, BATCH_SIZE).long().tolist()
        images, labels = zip(*(environment[position] for position in positions))
        batches.append((torch.stack(images), torch.tensor(labels)))
    return batches


def make_host_hparams(name: str, head: str) -> dict[str, Any]:
    """Return the hyperparameters of a host's algorithm with the embedded CLIP model."""
    hparams_registry = importlib.import_module("domainbed.hparams_registry")
    return {
        **hparams_registry.default_hparams(name, DATASET),
        "clip_backbone": "tiny",
        "clip_head": head,
        "class_names": f"dataset:{DATASET}",
        "batch_size": BATCH_SIZE,
    }


def try_host_algorithm(
    name: str, head: str, registry: Any, dataset: Any, batches: _Batches
) -> tuple[str, str]:
    """Train an algorithm for two steps; return works, refused or fails, and the details."""
    torch.manual_seed(0)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # algorithms print, and so does the plugin
            algorithm = registry.get_algorithm_class(name)(
                dataset.input_shape,
                dataset.num_classes,
                len(batches),
                make_host_hparams(name, head),
            )
            steps = [algorithm.update(list(batches), None) for _ in range(2)]
            shape = algorithm.predict(batches[0][0]).shape
    except CarftError as error:
        return "refused", "; ".join(error.problems)
    except Exception as error:
        return "fails", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

    if shape != (BATCH_SIZE, dataset.num_classes):
        return "fails", f"predictions of shape {tuple(shape)}"
    if not all(math.isfinite(value) for step in steps for value in step.values()):
        return "fails", f"values that are not finite: {describe_steps(steps)}"
    return "works", describe_steps(steps)


def describe_steps(steps: Sequence[dict[str, float]]) -> str:
    """Return the values of both steps by name, such as ``loss 2.3400 2.2917``."""
    return ", ".join(
        f"{name} {' '.join(f'{step[name]:.4g}' for step in steps if name in step)}"
        for name in {name: None for step in steps for name in step}
    )


if __name__ == "__main__":
    sys.exit(main())
