"""Compare CAR-FT's KL term in bf16 with the same term in fp32, for the same weights and images.

    python benchmarks/bf16_kl.py [--seeds 3] [--lr 3e-4]

The embedded CLIP model is fine-tuned in fp32 on three styles of EmojiStyles. After some of its
steps, the KL between its context distributions and the original's is computed twice, over 64 images
of each style: with the encoders in fp32, and under bf16 autocast, the default on GPUs. A line has
the mean KL in fp32, and the change by bf16 in percent: the mean over seeds and the range.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import domainbed_carft
from domainbed_carft.data import emoji
from domainbed_carft.method.carft import CARFT
from domainbed_carft.method.encoders import FrozenOriginal, encode
from domainbed_carft.method.objective import context_kl

STYLES = ("fluent3d", "line", "noto")
MEASURED_STEPS = (1, 3, 10, 30)
HPARAMS = {"clip_backbone": "tiny", "contexts": "emoji", "amp": "off"}


def main() -> None:
    """Print a line for each measured step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=3e-4, help="learning rate")
    arguments = parser.parse_args()

    kl_of_seeds = [measure(seed, arguments.lr) for seed in range(arguments.seeds)]
    print(f"{'steps':>5} {'KL in fp32':>11} {'change by bf16, %':>18} {'range':>16}")
    for step in MEASURED_STEPS:
        pairs = [kl_of_steps[step] for kl_of_steps in kl_of_seeds]
        changes = [100 * (bf16 / fp32 - 1) for fp32, bf16 in pairs]
        limits = f"{min(changes):+.1f} to {max(changes):+.1f}"
        kl = statistics.fmean(fp32 for fp32, _ in pairs)
        print(f"{step:5} {kl:11.5f} {statistics.fmean(changes):+18.1f} {limits:>16}")


def measure(seed: int, lr: float) -> dict[int, tuple[float, float]]:
    """Train, and return the KL in fp32 and in bf16 after each of MEASURED_STEPS."""
    folder = emoji.environment_folder("EmojiStyles")
    class_names = ImageFolder(str(folder / STYLES[0])).classes
    torch.manual_seed(seed)
    algorithm = domainbed_carft.build(
        "CARFT",
        class_names,
        hparams={**HPARAMS, "lr": lr},
        steps=MEASURED_STEPS[-1],
        num_domains=len(STYLES),
    )
    styles = [ImageFolder(str(folder / style), algorithm.preprocess) for style in STYLES]
    images = torch.cat([next(iter(DataLoader(style, 64, shuffle=True)))[0] for style in styles])
    loaders = [DataLoader(style, 16, shuffle=True, drop_last=True) for style in styles]
    # The original is stored in bf16 as training stores it: computed from the untrained encoder.
    originals = {bf16: FrozenOriginal(algorithm.encoder, bf16) for bf16 in (False, True)}

    kl_of_steps = {}
    step = 0
    while step < MEASURED_STEPS[-1]:
        for batches in zip(*loaders):
            algorithm.update(list(batches))
            step += 1
            if step in MEASURED_STEPS:
                fp32, bf16 = (compute_kl(algorithm, originals[on], images) for on in (False, True))
                kl_of_steps[step] = (fp32, bf16)
            if step == MEASURED_STEPS[-1]:
                break
    return kl_of_steps


@torch.no_grad()
def compute_kl(algorithm: CARFT, original: FrozenOriginal, images: Tensor) -> float:
    """Return the KL of the images, with both encoders in the precision of ``original``."""
    algorithm.eval()
    inputs = algorithm.input(images)
    tuned = encode(algorithm.encoder, inputs, original.bf16).features
    kl = context_kl(
        algorithm.context_logits(original(inputs, {}).features),
        algorithm.context_logits(tuned),
        algorithm.hparams["kl_direction"],
    )
    algorithm.train()
    return float(kl)


if __name__ == "__main__":
    main()
