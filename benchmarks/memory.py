"""The peak memory of training, of CARFT beside plain fine-tuning, and of what saves memory.

A frozen original is one more image encoder, which keeps no activations. The goal: CARFT needs at
most what plain fine-tuning does and the original's weights in their precision, and 10%.

    python benchmarks/memory.py [--shape tiny B/32 B/16 L/14] [--batch 8] [--steps 3]

Each is trained in a process of its own: on a processor its peak is what the kernel counted as
resident, from the first import on; on a GPU what torch had allocated. Weights are random, of
OpenAI's shape, and the embedded tiny CLIP's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from step_cost import DOMAINS, SHAPES, batch, make, moved, weights_of

from domainbed_carft import machine

MIB = 2**20
PIECE = 8  # pictures, for micro_batch
FROZEN = ("CARFT, original in fp32", "CARFT, original in bf16")
MEASURED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "plain fine-tuning": ("CLIPFineTune", "fp32", {}),
    **{name: ("CARFT", name[-4:], {}) for name in FROZEN},
    f"micro_batch {PIECE}": ("CARFT", "bf16", {"micro_batch": PIECE}),
    "checkpoint_blocks": ("CARFT", "bf16", {"checkpoint_blocks": True}),
    "both": ("CARFT", "bf16", {"micro_batch": PIECE, "checkpoint_blocks": True}),
}


def one(label: str, backbone: str, size: int, pixels: int, steps: int) -> dict[str, int]:
    """The peak of this process in bytes, after some steps, and the bytes of the original."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name, precision, more = MEASURED[label]
    algorithm = make(name, backbone, precision, **more).to(device)
    for step in range(steps):
        algorithm.step_on_device(moved(batch(size, pixels, step), device))
    original = algorithm.original
    weights = sum(p.nbytes for p in original.encoder.parameters()) if original else 0
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak": peak, "original": weights}


def measured(shape: str, size: int, steps: int) -> dict[str, dict[str, int]]:
    """`one` of each of MEASURED, each in a process of its own."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        given = [weights_of(shape, Path(folder)), size, 48 if shape == "tiny" else 224, steps]
        for label in MEASURED:
            command = [sys.executable, __file__, "--one", json.dumps([label, *given])]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[label] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=[*SHAPES], default=["B/32", "B/16"])
    parser.add_argument("--batch", type=int, default=8, help="pictures a domain")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    machine.keep_freed_memory()  # as train does
    if arguments.one:
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(sys.stderr):
            found = one(*arguments.one)
        print(json.dumps(found))
        return
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "processor"
    print(f"torch {torch.__version__}, {where}")
    for shape in arguments.shape:
        print(f"{shape}, {DOMAINS} x {arguments.batch} pictures, {arguments.steps} steps")
        found = measured(shape, arguments.batch, arguments.steps)
        plain = found["plain fine-tuning"]["peak"]
        for label, of_it in found.items():
            peak, limit = of_it["peak"], (plain + of_it["original"]) * 1.1
            goal = f", {peak / plain:.2f} of plain fine-tuning's" if peak != plain else ""
            if label in FROZEN:
                goal += f"; goal: at most {limit / MIB:,.0f} MiB"
            print(f"  {label:24} {peak / MIB:7,.0f} MiB{goal}", flush=True)


if __name__ == "__main__":
    main()
