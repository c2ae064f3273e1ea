"""What a table's columns and rows are called, and their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from domainbed_carft.data import benchmarks
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.records import Run

# Of DomainBed's data sets those that are no benchmark (domainbed/datasets.py at b93c22a).
_OTHERS = {
    "Debug28": ("0", "1", "2"),
    "Debug224": ("0", "1", "2"),
    "ColoredMNIST": ("+90%", "+80%", "-90%"),
    "RotatedMNIST": ("0", "15", "30", "45", "60", "75"),
    "SVIRO": (
        "aclass", "escape", "hilux", "i3", "lexus", "tesla", "tiguan", "tucson", "x5", "zoe",
    ),
}  # fmt: skip
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

    Those that a record has, else the known ones if they are as many as the record has accuracies
    of, else env0, env1, ... Of a data set without a record those that a manifest lists.
    """
    recorded: dict[str, tuple[str, ...]] = {}
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.dataset] = max(run.n_environments, counts.get(run.dataset, 0))
        if run.environments:
            recorded.setdefault(run.dataset, run.environments)
    for name in {job.args["dataset"]: None for job in planned if job.args["dataset"] not in counts}:
        recorded[name] = tuple((listed or {}).get(name) or _known(name))
        counts[name] = len(recorded[name])
    ordered = [name for name in _ORDER if name in counts]
    ordered += [name for name in counts if name not in _ORDER]
    return {name: _labels(name, counts[name], recorded) for name in ordered}


def _labels(name: str, count: int, recorded: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    for candidate in (recorded.get(name, ()), _known(name)):
        if len(candidate) == count:
            return candidate
    return tuple(f"env{i}" for i in range(count))


def _known(name: str) -> tuple[str, ...]:
    if name in benchmarks.BENCHMARKS:
        return tuple(e.label for e in benchmarks.BENCHMARKS[name].environments)
    return _OTHERS.get(name, ())


def algorithms(names: Iterable[str]) -> list[str]:
    """In alphabetical order, ours at the end from the untrained to CARFT."""
    found = set(names)
    return sorted(found.difference(_OURS)) + [name for name in _OURS if name in found]


def listed(test_envs: Sequence[int]) -> str:
    """Test environments as ``train`` takes them."""
    return " ".join(map(str, test_envs))
