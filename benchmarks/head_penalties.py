"""Compare a penalty on features with the cross-entropy, for the heads of CLIP in a checkout.

    python benchmarks/head_penalties.py CHECKOUT [--algorithms CORAL MMD]

Each algorithm of the checkout takes its first step with the embedded CLIP model and its default
hyperparameters, on 32 training images of each of three environments of EmojiStyles. A line has the
cross-entropy, the penalty and their ratio: with the random head, with the zero-shot head, and with
the zero-shot head if CLIP's logit scale were in the features instead of the classifier, which
changes no logit. Install this package and the requirements of the checkout.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

LOGIT_SCALE = 100.0  # of OpenAI's models and the embedded one


class Scale(nn.Module):
    """Multiply features by the logit scale."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scaled features."""
        return LOGIT_SCALE * x


def main() -> int:
    """Print a line for each algorithm and head; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkout", type=Path, help="folder that contains domainbed/")
    parser.add_argument("--algorithms", nargs="+", default=["CORAL", "MMD"])
    arguments = parser.parse_args()
    checkout = arguments.checkout.resolve()
    if not (checkout / "domainbed").is_dir():
        parser.error(f"expected a checkout of DomainBed in {checkout}")
    sys.path.insert(0, str(checkout))
    os.chdir(checkout)

    print(f"{'algorithm':12} {'head':28} {'cross-entropy':>13} {'penalty':>11} {'ratio':>9}")
    for name in arguments.algorithms:
        for head, in_features in (("random", False), ("zero-shot", False), ("zero-shot", True)):
            cross_entropy, penalty = take_step(name, head, scale_in_features=in_features)
            label = f"{head}, scale in features" if in_features else head
            ratio = penalty / cross_entropy
            print(f"{name:12} {label:28} {cross_entropy:13.4f} {penalty:11.5f} {ratio:9.4f}")
    return 0


def take_step(name: str, head: str, scale_in_features: bool) -> tuple[float, float]:
    """Return the cross-entropy and the penalty of an algorithm's first step."""
    host = {
        part: importlib.import_module(f"domainbed.{part}")
        for part in ("algorithms", "datasets", "hparams_registry")
    }
    hparams = dict(host["hparams_registry"].default_hparams(name, "EmojiStyles"))
    hparams |= {"clip_backbone": "tiny", "clip_head": head}
    hparams |= {"class_names": "dataset:EmojiStyles", "contexts": "emoji"}

    torch.manual_seed(0)
    dataset: Any = host["datasets"].EmojiStyles("", [0], hparams)
    loaders = [DataLoader(dataset[i], batch_size=32, shuffle=True) for i in (1, 2, 3)]
    batches = [next(iter(loader)) for loader in loaders]
    algorithm_class = host["algorithms"].get_algorithm_class(name)
    with contextlib.redirect_stdout(io.StringIO()):
        algorithm = algorithm_class(dataset.input_shape, dataset.num_classes, 3, hparams)
    if scale_in_features:
        algorithm.featurizer.activation = Scale()
        with torch.no_grad():
            algorithm.classifier.weight /= LOGIT_SCALE

    values = algorithm.update(batches)
    return values["loss"], values["penalty"]


if __name__ == "__main__":
    sys.exit(main())
