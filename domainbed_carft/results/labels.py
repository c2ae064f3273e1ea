"""What a table's columns and rows are called, and their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from domainbed_carft.data import benchmarks
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.records import Run

# DomainBed's order, ours after its; means over data sets depend on it in the last bit.
_ORDER = (
    "Debug28", "Debug224", "ColoredMNIST", "RotatedMNIST", "VLCS", "PACS", "OfficeHome",
    "TerraIncognita", "DomainNet", "SVIRO", "EmojiStyles",
)  # fmt: skip
_OURS = ("CLIPZeroShot", "CLIPLinearProbe", "CLIPFineTune", "CARFT")


def labels(
    runs: Iterable[Run],
    planned: Iterable[Job] = (),
    listed: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Data set -> labels of its environments, in the order of the tables.

    Those that a record has, else those that a manifest lists, else the known ones, if they are as
    many as the record has accuracies of; else env0, env1, ...
    """
    listed = listed or {}
    recorded: dict[str, tuple[str, ...]] = {}
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.dataset] = max(run.n_environments, counts.get(run.dataset, 0))
        if run.environments:
            recorded.setdefault(run.dataset, run.environments)
    for name in {job.key.dataset: None for job in planned}:
        counts.setdefault(name, len(listed.get(name) or _known(name)))
    found = {}
    for name in dict.fromkeys((*(name for name in _ORDER if name in counts), *counts)):
        fitting = (
            tuple(names)
            for names in (recorded.get(name, ()), listed.get(name, ()), _known(name))
            if len(names) == counts[name]
        )
        found[name] = next(fitting, tuple(f"env{i}" for i in range(counts[name])))
    return found


def _known(name: str) -> tuple[str, ...]:
    known = benchmarks.BENCHMARKS.get(name)
    return tuple(environment.label for environment in known.environments) if known else ()


def algorithms(names: Iterable[str]) -> list[str]:
    """In alphabetical order, ours at the end from the untrained to CARFT."""
    found = set(names)
    return sorted(found.difference(_OURS)) + [name for name in _OURS if name in found]
