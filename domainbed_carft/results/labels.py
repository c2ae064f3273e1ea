"""The order of datasets and rows in tables, and the labels of environments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from domainbed_carft.data import benchmarks
from domainbed_carft.jobs.algorithms import SHIPPED, Method
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.records import RecordedRun

# DomainBed's order, followed by our datasets. The last bit of a mean depends on it.
_DATASETS = (
    "Debug28",
    "Debug224",
    "ColoredMNIST",
    "RotatedMNIST",
    "VLCS",
    "PACS",
    "OfficeHome",
    "TerraIncognita",
    "DomainNet",
    "SVIRO",
    "EmojiStyles",
    "EmojiUnseen",
)


def environment_labels(
    runs: Iterable[RecordedRun],
    planned: Iterable[Job] = (),
    listed: Mapping[str, Sequence[str]] = {},
) -> dict[str, tuple[str, ...]]:
    """Map each dataset to the labels of its environments, in the order of the tables.

    Labels are taken from the records, then the manifests (``listed``), then the known benchmarks,
    if they are distinct and as many as recorded accuracies; otherwise they are env0, env1, ...
    """
    recorded: dict[str, tuple[str, ...]] = {}
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.dataset] = max(run.n_environments, counts.get(run.dataset, 0))
        if run.environments:
            recorded.setdefault(run.dataset, run.environments)

    benchmark_labels: Mapping[str, Sequence[str]] = {
        name: [environment.label for environment in benchmark.environments]
        for name, benchmark in benchmarks.BENCHMARKS.items()
    }
    for name in {job.key.dataset: None for job in planned}:
        counts.setdefault(name, len(listed.get(name, ()) or benchmark_labels.get(name, ())))

    ordered = [name for name in _DATASETS if name in counts]
    ordered += [name for name in counts if name not in _DATASETS]

    labels_by_dataset: dict[str, tuple[str, ...]] = {}
    for name in ordered:
        labels_by_dataset[name] = tuple(f"env{number}" for number in range(counts[name]))
        for source in (recorded, listed, benchmark_labels):
            names_in_source = source.get(name, ())
            if len(names_in_source) == len({*names_in_source}) == counts[name]:
                labels_by_dataset[name] = tuple(names_in_source)
                break
    return labels_by_dataset


def order_algorithms(
    declared: Iterable[str], own_methods: Mapping[str, Method] = {}
) -> tuple[str, ...]:
    """Return the order of algorithms in tables, legends and bars.

    First come the algorithms that sweeps ``declared``, then the methods of this package and
    the user's ``own_methods`` in the order of their styles.
    """
    rows = {
        name: method.style.row
        for name, method in {**own_methods, **SHIPPED}.items()
        if method.style
    }
    return tuple(dict.fromkeys((*declared, *sorted(rows, key=rows.__getitem__))))


def sort_rows(names: Iterable[str], order: Iterable[str]) -> list[str]:
    """Sort distinct names by their places in ``order``, then all others by name."""
    distinct = set(names)
    return [name for name in dict.fromkeys((*order, *sorted(distinct))) if name in distinct]
