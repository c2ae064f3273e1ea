"""Speed of image loading, compared with upstream DomainBed's loaders, on one core.

    python benchmarks/images.py --upstream CHECKOUT [--rounds 7]

Two processes with one thread each load images without worker processes. One uses upstream's folder
dataset with its `InfiniteDataLoader` (training, batches of 32) and `FastDataLoader` (test, batches
of 64). The other uses `domainbed_carft.images`, with the harness's seed for each image. The case
"from memory" measures test images that a job keeps after their first evaluation. The processes take
turns with the same files, and the ratios compare the CPU time per image.

The images are JPEGs of 500 x 400 pixels, quality 75, with smooth random content and noise. The
environment needs upstream's requirements and the extra `fast`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

DISTINCT, COPIES = 48, 4  # images per environment
TRAINING_BATCH, TEST_BATCH = 32, 64  # upstream's sizes
# Imports domainbed like `-m`: from the current folder, or otherwise the harness.
PROGRAM = "import runpy, sys; runpy.run_path(sys.argv[1])[sys.argv[2]](*sys.argv[3:])"

# Case -> upstream's case to compare with
CASES = {
    "training, from the file": "training",
    "test, from the file": "test",
    "test, from memory": "test",
}


def make_images(root: Path) -> None:
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for environment, n in itertools.product(("first", "second"), range(DISTINCT)):
        levels = np.full((400, 500, 3), 128.0)
        for detail, strength in ((4, 80), (16, 40), (64, 20), (200, 12)):
            for channel in range(3):
                noise = random.normal(size=(max(2, detail * 4 // 5), detail)).astype(np.float32)
                smooth = Image.fromarray(noise).resize((500, 400), Image.Resampling.BICUBIC)
                levels[..., channel] += strength * np.asarray(smooth)
        folder = root / environment / f"class {n % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=75)
        for copy in range(COPIES):
            (folder / f"{n:03}-{copy}.jpg").write_bytes(file.getvalue())


def serve(cases: dict[str, Callable[[], int]], facts: dict[str, Any]) -> None:
    """Answer each input line, the name of a case, with its CPU time in ms per image."""
    import torch

    torch.set_num_threads(1)
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        start = time.process_time()
        images = cases[line.strip()]()
        print((time.process_time() - start) / images * 1e3, flush=True)


def serve_upstream(root: str) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        import domainbed
        from domainbed.datasets import MultipleEnvironmentImageFolder
        from domainbed.lib.fast_data_loader import FastDataLoader, InfiniteDataLoader
    environments = MultipleEnvironmentImageFolder(root, [1], True, {})
    training = iter(InfiniteDataLoader(environments[0], None, TRAINING_BATCH, 0))
    test_loader = FastDataLoader(environments[1], TEST_BATCH, 0)

    def train() -> int:
        return sum(len(next(training)[1]) for _ in range(len(environments[0]) // TRAINING_BATCH))

    def test() -> int:
        return sum(len(y) for _, y in test_loader)

    serve({"training": train, "test": test}, {"harness": str(Path(domainbed.__file__).parent)})


def serve_package(root: str) -> None:
    import torch
    from domainbed.datasets import MultipleEnvironmentImageFolder
    from domainbed.lib import fast_data_loader
    from domainbed.lib.process_group import SINGLE_PROCESS

    from domainbed_carft import machine
    from domainbed_carft.images import loading, rng, stages, transforms

    machine.keep_freed_memory()
    environments = MultipleEnvironmentImageFolder(root, [1], True, {})
    steps = itertools.count()
    plans = [transforms.get_plan(environment.transform) for environment in environments]
    memory = torch.empty(TEST_BATCH, 3, 224, 224)

    def load_batches(number: int, size: int) -> int:
        samples = environments[number].samples
        order = range(len(samples))
        if not number:
            generator = torch.Generator().manual_seed(next(steps))
            order = torch.randint(len(samples), (len(samples),), generator=generator).tolist()
        for start in range(0, len(order) - size + 1, size):
            with rng.preserve_states():
                items = []
                for position in order[start : start + size]:
                    # Plans use only this generator.
                    seed = rng.derive_seed(number, next(steps), position)
                    torch.default_generator.manual_seed(seed)
                    pixels = loading.decode(samples[position][0])
                    square = stages.crop(plans[number], pixels)
                    items.append((square, stages.draw_choices(plans[number])))
            images, choices = (torch.stack(part) for part in zip(*items))
            stages.second_stage(plans[number], images, choices, memory if number else None)
        return len(order) // size * size

    evaluations = fast_data_loader.JobBatches(
        in_splits=[],
        evaluated={"test": environments[1]},
        hparams={"class_balanced": False, "batch_size": TRAINING_BATCH},
        steps=sys.maxsize,
        checkpoint_freq=1,
        seed=0,
        device=torch.device("cpu"),
        process_group=SINGLE_PROCESS,
        by_plan=True,
        memory_limit=1 << 30,
    )
    evaluations.begin(step=0, pending=False, once=False, workers=0)

    def evaluate() -> int:
        return sum(len(y) for _, y in evaluations.split_batches(environments[1]))

    evaluate()  # fills the memory
    cases = (
        functools.partial(load_batches, 0, TRAINING_BATCH),
        functools.partial(load_batches, 1, TEST_BATCH),
        evaluate,
    )
    serve(dict(zip(CASES, cases)), {"jitter": stages.jitter_backend("cpu")})


@contextlib.contextmanager
def run_server(function: str, folder: Path, data: str) -> Iterator[tuple[dict[str, Any], Any]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(Path(__file__).resolve()), function, data],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout
    if not (facts := process.stdout.readline()):
        sys.exit(f"{function} exited with status {process.wait()}; see its output above")

    def measure(case: str) -> float:
        process.stdin.write(f"{case}\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    yield json.loads(facts), measure
    process.stdin.close()
    process.wait()


def median_and_quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:6.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upstream", type=Path, required=True, help="a checkout of DomainBed")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    checkout = arguments.upstream.resolve()
    if arguments.rounds < 2 or not (checkout / "domainbed" / "datasets.py").is_file():
        parser.error(f"expected --rounds of 2 or more, and domainbed/datasets.py in {checkout}")

    versions = {name: version(name) for name in ("torch", "torchvision", "pillow", "numba")}
    print(", ".join(f"{name} {number}" for name, number in versions.items()))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = work / "data"
        make_images(data)
        (work / "empty").mkdir()
        with (
            run_server("serve_upstream", checkout, str(data)) as upstream,
            run_server("serve_package", work / "empty", str(data)) as package,
        ):
            assert Path(upstream[0]["harness"]) == checkout / "domainbed", upstream[0]
            times: dict[str, list[float]] = {case: [] for case in ("training", "test", *CASES)}
            for index in range(arguments.rounds + 1):
                order = [*times][index % len(times) :] + [*times][: index % len(times)]
                for case in order:
                    _, measure = package if case in CASES else upstream
                    value = measure(case)
                    if index:  # the first round is a warm-up
                        times[case].append(value)
        print(f"jitter by {package[0]['jitter']}; medians of {arguments.rounds} rounds, quartiles")
        print(f"{'':32} ms per image             times upstream's speed")
        for case, values in times.items():
            title = case if case in CASES else f"upstream, {case}"
            line = f"  {title:30} {median_and_quartiles(values):24}"
            if case in CASES:
                ratios = [a / b for a, b in zip(times[CASES[case]], values, strict=True)]
                line += f" {median_and_quartiles(ratios)}"
            print(line.rstrip())


if __name__ == "__main__":
    main()
