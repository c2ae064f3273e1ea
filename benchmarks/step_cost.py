"""Measure the cost of each method's training step relative to plain fine-tuning.

A step of plain fine-tuning is a forward pass (cost 1) and a backward pass (cost 2). A frozen
original model adds a forward pass (1), so at equal precision the limit of CAR-FT, and of the terms
that share that pass, is 4/3. The original model can run in bfloat16, which is cheaper if the CPU
supports it. The goals: at most 1.37 at equal precision, and 1.15 with the original in bf16 and
training in fp32.

    python benchmarks/step_cost.py [--shape tiny B/32 B/16] [--rounds 20] [--batch 8]
    python benchmarks/step_cost.py --methods [CaRot ...] [--rounds 10]     # on ViT-B/16's shape

Steps of the algorithms alternate in one process, so that other work on the machine affects all of
them; the result is the median ratio over rounds. On a CPU it is the ratio of CPU times on one
thread. Weights are random in the shapes of OpenAI's models, or those of the embedded tiny CLIP
model.
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
MAX_IN_MEMORY = 4  # methods, of more than 1 GB each
CLASSES = ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]  # PACS
VIT_B_32 = {
    "embed_dim": 512, "image_resolution": 224, "vision_layers": 12, "vision_width": 768,
    "vision_patch_size": 32, "context_length": 77, "vocab_size": 49408, "transformer_width": 512,
    "transformer_heads": 8, "transformer_layers": 12,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {},  # embedded weights
    "B/32": VIT_B_32,
    "B/16": {**VIT_B_32, "vision_patch_size": 16},
    "L/14": {
        **VIT_B_32, "embed_dim": 768, "vision_layers": 24, "vision_width": 1024,
        "vision_patch_size": 14, "transformer_width": 768, "transformer_heads": 12,
    },
}  # fmt: skip


def make_weights(shape: str, folder: Path) -> str:
    """Return the clip_backbone of a shape: "tiny", or a file with random weights."""
    if not SHAPES[shape]:
        return shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from clip.model import CLIP
    torch.manual_seed(0)
    path = folder / f"random-ViT-{shape.replace('/', '-')}.pt"
    torch.save(CLIP(**SHAPES[shape]).state_dict(), path)
    return str(path)


def make_algorithm(
    name: str, backbone: str, precision: str, **hparams: Any
) -> algorithm.CLIPAlgorithm:
    """Make an algorithm in fp32, with its original model in ``precision`` ("fp32" or "bf16")."""
    settings: dict[str, Any] = algorithms.hparam_values(name, "PACS")
    settings.update(
        clip_backbone=backbone, class_names=CLASSES, contexts="emoji", drift_every=0,
        amp="off", warmup_steps=0,
    )  # fmt: skip
    torch.manual_seed(0)
    images = 48 if backbone == "tiny" else 224
    shape = (3, images, images)
    built = algorithms.CLASSES[name](shape, len(CLASSES), DOMAINS, settings | hparams)
    if built.original and precision == "bf16":  # the default is fp32, like the encoder
        keep_weights = bool(built.hparams["sp_weight"])
        built.original = FrozenOriginal(built.encoder, bf16=True, keep_weights=keep_weights)
    return built


def make_batch(size: int, pixels: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 3, pixels, pixels, generator=generator),
            torch.randint(len(CLASSES), (size,), generator=generator),
        )
        for _ in range(DOMAINS)
    ]


def measure_seconds(work: Callable[[], Any], device: str) -> float:
    """Measure wall-clock time on a GPU, and CPU time on a CPU, where other work counts less."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    start = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def alternate_steps(
    algorithms_by_label: dict[str, algorithm.CLIPAlgorithm],
    size: int,
    pixels: int,
    rounds: int,
    device: str,
) -> dict[str, list[float]]:
    """Return label -> seconds of a step in each round."""
    times: dict[str, list[float]] = {label: [] for label in algorithms_by_label}
    for index in range(rounds + 1):
        data = [(x.to(device), y.to(device)) for x, y in make_batch(size, pixels, index)]
        # Rotate the order, so that drifts within a round affect all algorithms alike.
        order = [*times][index % len(times) :] + [*times][: index % len(times)]
        steps = {
            label: functools.partial(algorithms_by_label[label].step_on_device, data)
            for label in order
        }
        measured = {label: measure_seconds(step, device) for label, step in steps.items()}
        if index:  # the first round warms up
            for label, value in measured.items():
                times[label].append(value)
    return times


def print_ratios(
    plain: algorithm.CLIPAlgorithm, compared: dict[str, algorithm.CLIPAlgorithm],
    size: int, pixels: int,
    rounds: int, device: str, goals: dict[str, float],
) -> None:  # fmt: skip
    """Print the cost of a step of each compared algorithm relative to plain fine-tuning."""
    times = alternate_steps({"": plain, **compared}, size, pixels, rounds, device)
    for label in compared:
        ratios = [t / p for t, p in zip(times[label], times[""])]
        low, median, high = statistics.quantiles(ratios, n=4)
        goal = f"; goal: at most {goals[label]}" if label in goals else ""
        print(
            f"  {label:24} {median:.3f} times as much as plain fine-tuning "
            f"(quartiles {low:.3f} to {high:.3f}, {rounds} rounds{goal})",
            flush=True,
        )


# At the default precisions. LP-FT is measured in both phases; the second is plain fine-tuning.
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


def measure_methods(names: list[str], backbone: str, size: int, rounds: int, device: str) -> None:
    plain = make_algorithm("CLIPFineTune", backbone, "fp32").to(device)
    for start in range(0, len(names), MAX_IN_MEMORY):
        compared = {}
        for label in names[start : start + MAX_IN_MEMORY]:
            name, hparams = METHODS[label]
            compared[label] = make_algorithm(name, backbone, "bf16", **hparams).to(device)
        print_ratios(plain, compared, size, 224, rounds, device, goals={})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="at least 2 (default: 20)")
    parser.add_argument(
        "--batch", type=int, default=8, help="images per domain for a ViT (default: 8)"
    )
    parser.add_argument("--shape", nargs="+", choices=[*SHAPES], default=["tiny", "B/32", "B/16"])
    parser.add_argument(
        "--methods",
        nargs="*",
        help="measure these methods, or all if none are listed, on ViT-B/16's shape",
    )
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(
            f"--rounds is {arguments.rounds}; expected at least 2, for a median and quartiles"
        )
    if unknown := {*(arguments.methods or ())} - {*METHODS}:
        parser.error(f"--methods {sorted(unknown)} are unknown; expected some of {[*METHODS]}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    machine.keep_freed_memory()  # like train
    hardware = (
        torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, 1 thread"
    )
    print(f"torch {torch.__version__}, {device}, {hardware}")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.methods is not None:
            print(f"B/16, random weights, {DOMAINS} x {arguments.batch}; the original in bf16")
            backbone = make_weights("B/16", Path(folder))
            names = arguments.methods or [*METHODS]
            measure_methods(names, backbone, arguments.batch, arguments.rounds, device)
            return
        for shape in arguments.shape:
            backbone = make_weights(shape, Path(folder))
            size, pixels = (16, 48) if shape == "tiny" else (arguments.batch, 224)
            print(f"{shape}, {DOMAINS} x {size} images")
            plain = make_algorithm("CLIPFineTune", backbone, "fp32").to(device)
            compared = {
                f"CARFT, original in {p}": make_algorithm("CARFT", backbone, p).to(device)
                for p in ("fp32", "bf16")
            }
            goals = dict(zip(compared, (1.37, 1.15)))
            print_ratios(plain, compared, size, pixels, arguments.rounds, device, goals)


if __name__ == "__main__":
    main()
