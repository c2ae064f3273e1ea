"""Measures a step and an evaluation batch of a sweep's algorithms here, on random pictures."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.method import hparams as ours
from domainbed_carft.sweep import names as host
from domainbed_carft.sweep import rates
from domainbed_carft.sweep.estimate import Group, Pace
from domainbed_carft.sweep.jobs import Job, seed_hash

STEPS = 3
EVALUATION_BATCH = 64  # DomainBed's


def measure(
    jobs: Iterable[Job], known: Mapping[Group, Pace], say: Callable[[str], None]
) -> dict[Group, Pace]:
    """Measure one job of each data set and algorithm of which nothing is known.

    ``say`` is told which cannot be measured, and why.
    """
    paces = dict(known)
    tried = set(known)
    for job in jobs:
        group = (job.train_args["dataset"], job.train_args["algorithm"])
        if group in tried:
            continue
        tried.add(group)
        try:
            paces[group] = _measured(job)
        except Exception as error:  # of an algorithm, a download, a device out of memory
            say(f"{' '.join(group)} cannot be measured here: {error}")
    return paces


def _measured(job: Job) -> Pace:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    hparams = _hparams(job)
    shape, classes = _pictures(job, hparams)
    domains = rates.training_environments(job)
    algorithm = _algorithm(job.train_args["algorithm"])(shape, classes, domains, hparams)
    algorithm.to(device)
    size = int(hparams["batch_size"])

    def batch(count: int) -> tuple[Any, Any]:
        labels = torch.randint(classes, (count,), device=device)
        return torch.randn(count, *shape, device=device), labels

    def settle() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    step = _median(lambda: algorithm.update([batch(size) for _ in range(domains)]), settle)
    algorithm.eval()
    with torch.no_grad():
        evaluation = _median(lambda: algorithm.predict(batch(EVALUATION_BATCH)[0]), settle)
    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} cores"
    weights = algorithm.state_dict().values()
    return Pace(
        step / (size * domains),
        evaluation / EVALUATION_BATCH,
        f"{STEPS} steps and {STEPS} evaluation batches on random pictures, just now on {where}",
        "decoding and augmenting pictures, starting jobs, saving",
        sum(tensor.numel() * tensor.element_size() for tensor in weights),
    )


def _median(action: Callable[[], object], settle: Callable[[], None]) -> float:
    """Median seconds, after one time to warm up."""
    action()
    times = []
    for _ in range(STEPS):
        settle()
        started = time.perf_counter()
        action()
        settle()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _algorithm(name: str) -> Any:
    return host.module("algorithms").get_algorithm_class(name)


def _hparams(job: Job) -> dict[str, Any]:
    hparams_registry = host.module("hparams_registry")
    args = job.train_args
    names = (args["algorithm"], args["dataset"])
    seed = args["hparams_seed"]
    if seed:
        draw = seed_hash(seed, args["trial_seed"])
        values = hparams_registry.random_hparams(*names, draw)
    else:
        values = hparams_registry.default_hparams(*names)
    return {**values, **json.loads(args.get("hparams") or "{}")}


def _pictures(job: Job, hparams: dict[str, Any]) -> tuple[tuple[int, int, int], int]:
    """Shape of a picture and number of classes; tells CLIP some names where there is no table."""
    name = job.train_args["dataset"]
    own = job.train_args["algorithm"] in ours.ALGORITHMS
    if name in benchmarks.BENCHMARKS:
        size = 48 if name == "EmojiStyles" and own else 224
        return (3, size, size), len(benchmarks.BENCHMARKS[name].classes)
    classes = host.class_names(name)
    if not classes:
        raise CarftError(f"it is not known how many classes {name} has")
    if own:
        hparams["class_names"] = list(classes)
    return (3, 224, 224), len(classes)
