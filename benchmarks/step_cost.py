"""What each method's training step costs beside plain fine-tuning's, side by side.

A step of plain fine-tuning is a forward (1) and a backward (2) pass; a frozen original adds its
forward (1), so at equal precision the limit of CAR-FT and of the terms that share that pass is 4/3.
The original may run in bfloat16, which is cheaper where the processor computes in it, and changes
the KL a little: both are measured.

    python benchmarks/step_cost.py [--rounds 10] [--batch 8]     # CARFT, in both precisions
    python benchmarks/step_cost.py --methods [--rounds 10]       # all methods, on ViT-B/16's shape

Steps of the algorithms alternate in one process, so that whatever else the machine does falls on
all; the ratio is the median over rounds. Weights are random, of OpenAI's shape for ViT-B/32 or
ViT-B/16, and the embedded tiny CLIP's.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from domainbed_carft.method import algorithms, body, hparams

DOMAINS = 3
AT_A_TIME = 4  # methods in memory, of more than a GB each
CLASSES = ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]  # PACS
VIT_B_32 = {
    "embed_dim": 512, "image_resolution": 224, "vision_layers": 12, "vision_width": 768,
    "vision_patch_size": 32, "context_length": 77, "vocab_size": 49408, "transformer_width": 512,
    "transformer_heads": 8, "transformer_layers": 12,
}  # fmt: skip


def random_weights(folder: Path, patch: int = 32) -> str:
    """A state dict of ViT-B/32's shape, or another patch's, with random weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from clip.model import CLIP
    torch.manual_seed(0)
    path = folder / f"random-ViT-B-{patch}.pt"
    torch.save(CLIP(**{**VIT_B_32, "vision_patch_size": patch}).state_dict(), path)
    return str(path)


def make(name: str, backbone: str, precision: str, **more: Any) -> body.CLIPAlgorithm:
    settings: dict[str, Any] = {
        k: default for k, (default, _) in hparams.overlay(name, "PACS", 0).items()
    }
    settings.update(
        clip_backbone=backbone, class_names=CLASSES, contexts="emoji", drift_every=0,
        original_precision=precision, warmup_steps=0, **more,
    )  # fmt: skip
    torch.manual_seed(0)
    return getattr(algorithms, name)((3, 224, 224), len(CLASSES), DOMAINS, settings)


def batch(size: int, pixels: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 3, pixels, pixels, generator=generator),
            torch.randint(len(CLASSES), (size,), generator=generator),
        )
        for _ in range(DOMAINS)
    ]


def seconds(algorithm: body.CLIPAlgorithm, data: list[tuple[Any, Any]], device: str) -> float:
    """Of processor time where the processor computes: what else runs there counts less."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    start = clock()
    algorithm.update(data)
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def ratios(
    plain: body.CLIPAlgorithm, others: dict[str, body.CLIPAlgorithm], size: int, pixels: int,
    rounds: int, device: str,
) -> None:  # fmt: skip
    """Print the cost of a step of each of ``others`` over a step of plain fine-tuning."""
    stepped = {"": plain, **others}
    times: dict[str, list[float]] = {label: [] for label in stepped}
    for index in range(rounds + 1):
        data = [(x.to(device), y.to(device)) for x, y in batch(size, pixels, index)]
        # Turned each round, so that what drifts within one falls on each in turn.
        order = [*times][index % len(times) :] + [*times][: index % len(times)]
        measured = {label: seconds(stepped[label], data, device) for label in order}
        if index:  # the first round warms up
            for label, value in measured.items():
                times[label].append(value)
    for label in others:
        each = [t / p for t, p in zip(times[label], times[""])]
        low, _, high = statistics.quantiles(each, n=4)
        print(
            f"  {label:24} {statistics.median(each):.3f} times as much as plain fine-tuning "
            f"(quartiles {low:.3f} to {high:.3f}, {rounds} rounds)",
            flush=True,
        )


# At the default precisions. LP-FT's second phase is plain fine-tuning, so its first is there, too.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "CLIPFineTune+sma": ("CLIPFineTune", {"average": "sma", "average_start": 0}),
    "CLIPFineTune+ema": ("CLIPFineTune", {"average": "ema"}),
    "CLIPFineTune+beta": ("CLIPFineTune", {"average": "beta"}),
    **{
        name: (name, {"lp_steps": 0})
        for name in hparams.ALGORITHMS
        if name not in ("CLIPFineTune", "CLIPZeroShot")
    },
    "CLIPLPFT, first phase": ("CLIPLPFT", {}),
}


def kl_error(backbone: str, size: int, pixels: int, device: str) -> None:
    """Print how far bf16 in the original moves the KL, at its weights and a few steps away."""
    exact = make("CLIPFineTune", backbone, "fp32").to(device)
    original = copy.deepcopy(exact.encoder).eval()
    kl_of_both(exact, original, backbone, size, pixels, device, "at the original weights")
    for step in range(5):
        exact.update([(x.to(device), y.to(device)) for x, y in batch(size, pixels, step)])
    kl_of_both(exact, original, backbone, size, pixels, device, "after 5 steps")


def kl_of_both(
    exact: body.CLIPAlgorithm,
    original: torch.nn.Module,
    backbone: str,
    size: int,
    pixels: int,
    device: str,
    when: str,
) -> None:
    """Print the KL of the encoder of ``exact`` against ``original`` in fp32 and in bf16."""
    values = {}
    for precision in ("fp32", "bf16"):
        measured = make("CARFT", backbone, precision)
        measured.encoder.load_state_dict(exact.encoder.state_dict())
        measured.to(device).eval()
        assert measured.terms and measured.terms.original
        measured.terms.original.encoder.load_state_dict(original.state_dict())
        x = torch.cat([x for x, _ in batch(size, pixels, 99)]).to(device)
        y = torch.zeros(len(x), dtype=torch.long, device=device)
        with torch.no_grad():
            values[precision] = float(measured._loss(x, y)["loss_kl"])
    apart = values["bf16"] - values["fp32"]
    relative = f" ({100 * abs(apart) / values['fp32']:.2f}%)" if values["fp32"] else ""
    print(
        f"  KL {when}: {values['fp32']:.6f} (fp32), {values['bf16']:.6f} (bf16), "
        f"apart by {apart:+.6f}{relative}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8, help="pictures a domain for a ViT-B")
    parser.add_argument("--methods", action="store_true", help="measure all methods instead")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(
            f"--rounds is {arguments.rounds}, expected at least 2 for a median and quartiles"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = (
        torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    )
    print(f"torch {torch.__version__}, {device}, {where}")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.methods:
            shape, names = random_weights(Path(folder), 16), [*METHODS]
            print(f"ViT-B/16, random weights, {DOMAINS} x {arguments.batch}; the original in bf16")
            plain = make("CLIPFineTune", shape, "fp32").to(device)
            for first in range(0, len(names), AT_A_TIME):
                others = {}
                for label in names[first : first + AT_A_TIME]:
                    name, more = METHODS[label]
                    others[label] = make(name, shape, "bf16", **more).to(device)
                ratios(plain, others, arguments.batch, 224, arguments.rounds, device)
            return
        for title, backbone, size, pixels in (
            ("tiny", "tiny", 16, 48),
            ("ViT-B/32, random weights", random_weights(Path(folder)), arguments.batch, 224),
        ):
            print(f"{title}, {DOMAINS} x {size} pictures")
            plain = make("CLIPFineTune", backbone, "fp32").to(device)
            others = {
                f"CARFT, original in {p}": make("CARFT", backbone, p).to(device)
                for p in ("fp32", "bf16")
            }
            ratios(plain, others, size, pixels, arguments.rounds, device)
            kl_error(backbone, size, pixels, device)


if __name__ == "__main__":
    main()
