"""The cost of each method's training step over plain fine-tuning's.

A step of plain fine-tuning is a forward (1) and a backward (2) pass; a frozen original adds its
forward (1), so at equal precision the limit of CAR-FT and of the terms that share that pass is 4/3.
The original may run in bfloat16, which is cheaper if the processor computes in it. The goals: at
most 1.37 at equal precision, 1.15 with the original in bf16 and training in fp32.

    python benchmarks/step_cost.py [--shape tiny B/32 B/16] [--rounds 20] [--batch 8]
    python benchmarks/step_cost.py --methods [CaRot ...] [--rounds 10]     # on ViT-B/16's shape

Steps of the algorithms alternate in one process, so that whatever else the machine does falls on
all; the ratio is the median over rounds. On a processor it is that of processor time, on one
thread. Weights are random, of OpenAI's shape, and the embedded tiny CLIP's.
"""

from __future__ import annotations

import argparse
import functools
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from domainbed_carft import machine
from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.method import algorithm, algorithms
from domainbed_carft.method.encoders import FrozenOriginal

DOMAINS = 3
AT_A_TIME = 4  # methods in memory, of more than a GB each
CLASSES = ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]  # PACS
VIT_B_32 = {
    "embed_dim": 512, "image_resolution": 224, "vision_layers": 12, "vision_width": 768,
    "vision_patch_size": 32, "context_length": 77, "vocab_size": 49408, "transformer_width": 512,
    "transformer_heads": 8, "transformer_layers": 12,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {},  # the embedded one
    "B/32": VIT_B_32,
    "B/16": {**VIT_B_32, "vision_patch_size": 16},
    "L/14": {
        **VIT_B_32, "embed_dim": 768, "vision_layers": 24, "vision_width": 1024,
        "vision_patch_size": 14, "transformer_width": 768, "transformer_heads": 12,
    },
}  # fmt: skip


def weights_of(shape: str, folder: Path) -> str:
    """The clip_backbone of a shape: a state dict with random weights."""
    if not SHAPES[shape]:
        return shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from clip.model import CLIP
    torch.manual_seed(0)
    path = folder / f"random-ViT-{shape.replace('/', '-')}.pt"
    torch.save(CLIP(**SHAPES[shape]).state_dict(), path)
    return str(path)


def make(name: str, backbone: str, precision: str, **more: Any) -> algorithm.CLIPAlgorithm:
    """An algorithm in fp32; ``precision``: that of its original, "fp32" or "bf16"."""
    settings: dict[str, Any] = algorithms.hparam_values(name, "PACS")
    settings.update(
        clip_backbone=backbone, class_names=CLASSES, contexts="emoji", drift_every=0,
        amp="off", warmup_steps=0,
    )  # fmt: skip
    torch.manual_seed(0)
    images = 48 if backbone == "tiny" else 224
    shape = (3, images, images)
    made = algorithms.CLASSES[name](shape, len(CLASSES), DOMAINS, settings | more)
    if made.original and precision == "bf16":  # else it is in that of the encoder, fp32
        keep_weights = bool(made.hparams["sp_weight"])
        made.original = FrozenOriginal(made.encoder, bf16=True, keep_weights=keep_weights)
    return made


def batch(size: int, pixels: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 3, pixels, pixels, generator=generator),
            torch.randint(len(CLASSES), (size,), generator=generator),
        )
        for _ in range(DOMAINS)
    ]


def moved(data: list[Any], device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x.to(device), y.to(device)) for x, y in data]


def seconds(work: Callable[[], Any], device: str) -> float:
    """Of processor time where the processor computes: what else runs there counts less."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    start = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def alternated(
    stepped: dict[str, algorithm.CLIPAlgorithm],
    size: int,
    pixels: int,
    rounds: int,
    device: str,
) -> dict[str, list[float]]:
    """The seconds of a step of each, in each round."""
    times: dict[str, list[float]] = {label: [] for label in stepped}
    for index in range(rounds + 1):
        data = moved(batch(size, pixels, index), device)
        # Turned each round, so that what drifts within one falls on each in turn.
        order = [*times][index % len(times) :] + [*times][: index % len(times)]
        steps = {label: functools.partial(stepped[label].step_on_device, data) for label in order}
        measured = {label: seconds(step, device) for label, step in steps.items()}
        if index:  # the first round warms up
            for label, value in measured.items():
                times[label].append(value)
    return times


def ratios(
    plain: algorithm.CLIPAlgorithm, others: dict[str, algorithm.CLIPAlgorithm],
    size: int, pixels: int,
    rounds: int, device: str, goals: dict[str, float],
) -> None:  # fmt: skip
    """Print the cost of a step of each of ``others`` over a step of plain fine-tuning."""
    times = alternated({"": plain, **others}, size, pixels, rounds, device)
    for label in others:
        each = [t / p for t, p in zip(times[label], times[""])]
        low, _, high = statistics.quantiles(each, n=4)
        goal = f"; goal: at most {goals[label]}" if label in goals else ""
        print(
            f"  {label:24} {statistics.median(each):.3f} times as much as plain fine-tuning "
            f"(quartiles {low:.3f} to {high:.3f}, {rounds} rounds{goal})",
            flush=True,
        )


# At the default precisions. LP-FT's second phase is plain fine-tuning, so its first is there, too.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "CLIPFineTune+sma": ("CLIPFineTune", {"average": "sma", "average_start": 0}),
    "CLIPFineTune+ema": ("CLIPFineTune", {"average": "ema"}),
    "CLIPFineTune+beta": ("CLIPFineTune", {"average": "beta"}),
    "CLIPFineTune+swad": ("CLIPFineTune", {"average": "swad"}),
    **{
        name: (name, {"lp_steps": 0})
        for name in ALGORITHMS
        if name not in ("CLIPFineTune", "CLIPZeroShot")
    },
    "CLIPLPFT, first phase": ("CLIPLPFT", {}),
}


def of_methods(names: list[str], backbone: str, size: int, rounds: int, device: str) -> None:
    plain = make("CLIPFineTune", backbone, "fp32").to(device)
    for first in range(0, len(names), AT_A_TIME):
        others = {}
        for label in names[first : first + AT_A_TIME]:
            name, more = METHODS[label]
            others[label] = make(name, backbone, "bf16", **more).to(device)
        ratios(plain, others, size, 224, rounds, device, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8, help="images a domain for a ViT")
    parser.add_argument("--shape", nargs="+", choices=[*SHAPES], default=["tiny", "B/32", "B/16"])
    parser.add_argument("--methods", nargs="*", help="measure these methods, or all, instead")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(
            f"--rounds is {arguments.rounds}, expected at least 2 for a median and quartiles"
        )
    if unknown := {*(arguments.methods or ())} - {*METHODS}:
        parser.error(f"--methods has {sorted(unknown)}; expected some of {[*METHODS]}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    machine.keep_freed_memory()  # as train does
    where = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, 1 thread"
    print(f"torch {torch.__version__}, {device}, {where}")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.methods is not None:
            print(f"B/16, random weights, {DOMAINS} x {arguments.batch}; the original in bf16")
            backbone = weights_of("B/16", Path(folder))
            names = arguments.methods or [*METHODS]
            of_methods(names, backbone, arguments.batch, arguments.rounds, device)
            return
        for shape in arguments.shape:
            backbone = weights_of(shape, Path(folder))
            size, pixels = (16, 48) if shape == "tiny" else (arguments.batch, 224)
            print(f"{shape}, {DOMAINS} x {size} images")
            plain = make("CLIPFineTune", backbone, "fp32").to(device)
            others = {
                f"CARFT, original in {p}": make("CARFT", backbone, p).to(device)
                for p in ("fp32", "bf16")
            }
            goals = dict(zip(others, (1.37, 1.15)))
            ratios(plain, others, size, pixels, arguments.rounds, device, goals)


if __name__ == "__main__":
    main()
