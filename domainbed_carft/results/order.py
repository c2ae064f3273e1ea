"""The order and the labels of the tables' rows and columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from domainbed_carft.data import benchmarks
from domainbed_carft.jobs import own_methods
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.records import Run

# DomainBed's order, ours after its; means over data sets depend on it in the last bit.
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
    runs: Iterable[Run], planned: Iterable[Job] = (), listed: Mapping[str, Sequence[str]] = {}
) -> dict[str, tuple[str, ...]]:
    """Data set -> labels of its environments, in the order of the tables.

    The labels of a record, else of a manifest, else the known ones, if their number matches the
    accuracies of the record; else env0, env1, ...
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

    labels_of: dict[str, tuple[str, ...]] = {}
    for name in ordered:
        labels_of[name] = tuple(f"env{number}" for number in range(counts[name]))
        for source in (recorded, listed, benchmark_labels):
            names_in_source = source.get(name, ())
            if len(names_in_source) == counts[name]:
                labels_of[name] = tuple(names_in_source)
                break
    return labels_of


def ordered_algorithms(names: Iterable[str], declared: Iterable[str] = ()) -> list[str]:
    """``names``, each once, in the order of rows, legends and bars.

    First those that a sweep ``declared``, in its order, then ours and those of a user's files by
    the rows of their styles, then all others by name.
    """
    distinct = set(names)
    order = dict.fromkeys((*declared, *own_methods.known(), *sorted(distinct)))
    return [name for name in order if name in distinct]
