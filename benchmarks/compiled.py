"""Whether torch.compile, or pictures whose channels are innermost, make a step of a ViT faster.

    python benchmarks/compiled.py [--shape B/32] [--pictures 4] [--rounds 8]

The image encoder alone, OpenAI's class with random weights, forward and backward in fp32, one
thread: eager, compiled, and with `channels_last` pictures, in turn in one process. Processor time,
as ratios to eager, each the median of the rounds with quartiles. Compiling needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from clip.model import VisionTransformer

from domainbed_carft import machine

PATCHES = {"B/32": 32, "B/16": 16}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=PATCHES, default="B/32")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    machine.keep_freed_memory()  # as train does
    torch.manual_seed(0)
    encoder = VisionTransformer(224, PATCHES[given.shape], 768, 12, 12, 512)
    x, direction = torch.randn(given.pictures, 3, 224, 224), torch.randn(512)

    def seconds(forward: Callable[[torch.Tensor], torch.Tensor], pictures: torch.Tensor) -> float:
        begin = time.process_time()
        encoder.zero_grad(set_to_none=True)
        (forward(pictures) @ direction).mean().backward()
        return time.process_time() - begin

    compiled = torch.compile(encoder)
    print(f"compiling and the first step: {seconds(compiled, x):.0f} s")
    innermost = x.contiguous(memory_format=torch.channels_last)
    ways = {"eager": (encoder, x), "compiled": (compiled, x), "channels_last": (encoder, innermost)}
    for way in ways.values():
        seconds(*way)
    times = [{name: seconds(*way) for name, way in ways.items()} for _ in range(given.rounds)]
    print(f"eager: {statistics.median(one['eager'] for one in times):.2f} s a step")
    for name in ("compiled", "channels_last"):
        low, middle, high = statistics.quantiles([one[name] / one["eager"] for one in times], n=4)
        print(f"{name}: {middle:.2f} of eager's ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
