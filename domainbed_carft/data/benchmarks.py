"""What is known of each benchmark before its data is seen.

Facts stand in ``assets/benchmarks.json``, class names and counts by environment, empty if unknown,
in ``assets/classes/NAME.csv``. ``assets/README.md`` names the sources. The facts of the tasks and
of ImageNet's test sets are in ``assets/suites``.
"""

from __future__ import annotations

import csv
import functools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from domainbed_carft import text
from domainbed_carft.errors import CarftError

ASSETS = files("domainbed_carft") / "assets"


@dataclass(frozen=True)
class Environment:
    """One environment: its label in DomainBed's tables, its folder, names that copies give it.

    Environments of one ``family`` are not independent; "" is for those that are.
    """

    label: str
    folder: str
    also: Sequence[str] = ()
    family: str = ""


@dataclass(frozen=True)
class Source:
    """Where a file of the dataset is published, and the name to save it under."""

    url: str
    file: str

    @property
    def is_archive(self) -> bool:
        """Whether it is to be unpacked."""
        return self.file.endswith((".zip", ".tar", ".tar.gz"))


@dataclass(frozen=True)
class Edition:
    """One version of the data: environment folder -> images, and by class where known."""

    name: str
    counts: Mapping[str, int]
    by_class: Mapping[str, Mapping[str, int]]

    @property
    def total(self) -> int:
        """Images in all environments."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class Benchmark:
    """One dataset."""

    name: str
    folder: str  # below the data folder, "" for what is in the package
    environments: tuple[Environment, ...]  # in DomainBed's order
    classes: tuple[str, ...]  # in label order
    editions: tuple[Edition, ...]  # today's is the first
    sources: tuple[Source, ...]
    licence: str  # "not stated" where we found none
    citation: str
    steps: Mapping[str, int]  # of training, by protocol: "DomainBed", "SWAD", ...
    certainty: str  # where the counts are from


def edition_label(edition: str) -> str:
    """An edition, as it is recorded, in words for people: that of the included data has no name."""
    return edition.replace("of the package", "the copy included in the package")


def independent_unit(dataset: str, environment: int) -> str:
    """What an environment is one unit with in errors: its family, or itself, by its index."""
    known = BENCHMARKS[dataset].environments if dataset in BENCHMARKS else ()
    family = known[environment].family if environment < len(known) else ""
    return family or str(environment)


def get(name: str) -> Benchmark:
    """The benchmark called ``name``. Raises CarftError, with similar names, if it is unknown."""
    if name not in BENCHMARKS:
        raise CarftError(text.unknown("benchmark", name, BENCHMARKS))
    return BENCHMARKS[name]


@functools.cache
def suite_lists() -> dict[str, Any]:
    """ImageNet's 1,000 ids, the classes of ImageNet-A and -R among them, ObjectNet's folders."""
    return json.loads((ASSETS / "suites" / "imagenet.json").read_text(encoding="utf-8"))


@functools.cache
def imagenet_ids() -> tuple[str, ...]:
    """ImageNet's 1,000 WordNet ids, sorted, which is the order of the labels."""
    return tuple(suite_lists()["ids"].split())


@functools.cache
def suite_sets() -> dict[str, Any]:
    """ImageNet and the test sets shifted from it, and their zero-shot accuracies."""
    return json.loads((ASSETS / "suites" / "sets.json").read_text(encoding="utf-8"))


@functools.cache
def task_facts() -> dict[str, Any]:
    """The tasks, and the source of their zero-shot accuracies."""
    return json.loads((ASSETS / "suites" / "tasks.json").read_text(encoding="utf-8"))


@functools.cache
def class_folders(name: str) -> tuple[str, ...]:
    """The dataset's own names of its classes, in label order, as folders or lists have them."""
    table = (ASSETS / "classes" / f"{name}.csv").read_text(encoding="utf-8")
    _, *rows = csv.reader(table.splitlines())
    return tuple(row[0] for row in rows)


def is_known_name(name: str) -> bool:
    """Whether `carft data verify` finds the dataset by this name, below --data_dir."""
    named = [*suite_sets()["sets"], *task_facts()["tasks"]]
    return name in BENCHMARKS or any(name == facts["name"] for facts in named)


def data_dir_problems(data_dir: str | Path) -> list[str]:
    """A sentence if ``data_dir``, the folder of the datasets' folders, is not a folder."""
    if os.path.isdir(data_dir):
        return []

    fault = "is not a folder" if os.path.exists(data_dir) else "does not exist"
    return [f"--data_dir {data_dir} {fault}; give the folder that contains the datasets' folders"]


def _benchmark(facts: dict[str, Any]) -> Benchmark:
    """A benchmark from its facts in benchmarks.json and its table of classes."""
    path = ASSETS / "classes" / f"{facts['name']}.csv"
    header, *rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
    columns = {
        environment: {row[0]: int(row[column]) for row in rows if row[column]}
        for column, environment in enumerate(header[1:], start=1)
    }
    by_class = {environment: counts for environment, counts in columns.items() if counts}
    totals = {environment: sum(counts.values()) for environment, counts in columns.items()}

    structured_facts = {
        "environments": tuple(Environment(**fields) for fields in facts["environments"]),
        "classes": tuple(row[0] for row in rows),
        "editions": tuple(
            Edition(edition["name"], {**totals, **edition.get("counts", {})}, by_class)
            for edition in facts["editions"]
        ),
        "sources": tuple(Source(**fields) for fields in facts["sources"]),
    }
    return Benchmark(**{**facts, **structured_facts})


BENCHMARKS = {
    facts["name"]: _benchmark(facts)
    for facts in json.loads((ASSETS / "benchmarks.json").read_text(encoding="utf-8"))
}


def shortest_path(name: str) -> str:
    """The shortest form of a path that is not mistaken for a dataset's name.

    ``pets/`` becomes ``./pets``; ``pets`` is a name and stays.
    """
    if os.sep not in name:
        return name

    path = os.path.normpath(name)
    return path if os.sep in path else os.path.join(os.curdir, path)


def dataset_titles(datasets: Iterable[str]) -> dict[str, str]:
    """What tables, reports and cards call each dataset.

    A user's own dataset, a path, is called by its folder's name; by its path where that name is a
    benchmark's, or that of another of ``datasets``.
    """
    names = list(dict.fromkeys(datasets))
    folders = [os.path.basename(name) for name in names]
    titles = {}
    for name, folder in zip(names, folders):
        is_clear = folders.count(folder) == 1 and folder not in BENCHMARKS
        titles[name] = folder if is_clear and folder.strip(".") else name
    return titles


def dataset_title(dataset: str) -> str:
    """What tables, reports and cards call a dataset beside which there is no other."""
    return dataset_titles([dataset])[dataset]
