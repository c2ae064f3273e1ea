"""Train each algorithm of this package in a checkout of DomainBed or of a fork.

    python benchmarks/checkout_methods.py CHECKOUT

The algorithms are found by the checkout's lookup and trained in one process, on random images with
the embedded CLIP model: two steps and a prediction, whose losses are printed. Install this package
and the requirements of the checkout. Exits with status 1 if a loss is not finite.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch

from domainbed_carft.jobs.algorithms import ALGORITHMS


def main() -> int:
    """Print a line for each algorithm; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkout", type=Path, help="folder that contains domainbed/")
    checkout = parser.parse_args().checkout.resolve()
    if not (checkout / "domainbed").is_dir():
        parser.error(f"expected a checkout of DomainBed in {checkout}")
    sys.path.insert(0, str(checkout))
    os.chdir(checkout)
    registry = importlib.import_module("domainbed.algorithms")
    if not Path(registry.__file__ or "").is_relative_to(checkout):
        parser.error(f"{checkout} does not contain domainbed; {registry.__file__} was imported")

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


if __name__ == "__main__":
    sys.exit(main())
