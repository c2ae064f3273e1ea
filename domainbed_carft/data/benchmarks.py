"""Known facts about the benchmarks.

``assets/benchmarks.json`` contains the facts, and ``assets/classes/NAME.csv`` the class names and
counts by environment (empty if unknown). ``assets/README.md`` lists the sources. The facts of the
tasks and of ImageNet's test sets are in ``assets/suites``.
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

from domainbed_carft import suggestions
from domainbed_carft.errors import CarftError

ASSETS = files("domainbed_carft") / "assets"


@dataclass(frozen=True)
class Environment:
    """One environment of a benchmark."""

    label: str  # in DomainBed's tables
    folder: str
    aliases: Sequence[str] = ()  # other names of the folder, found in copies of the dataset
    family: str = ""  # environments of the same family are not independent; "" if independent


@dataclass(frozen=True)
class Source:
    """A published file of a dataset."""

    url: str
    file: str  # name to save it as

    @property
    def is_archive(self) -> bool:
        """Return True if the file has to be unpacked."""
        return self.file.endswith((".zip", ".tar", ".tar.gz"))


@dataclass(frozen=True)
class Edition:
    """One version of a benchmark's data."""

    name: str
    counts: Mapping[str, int]  # environment folder -> number of images
    by_class: Mapping[str, Mapping[str, int]]  # environment folder -> class -> images, if known

    @property
    def total(self) -> int:
        """Number of images in all environments."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class Benchmark:
    """One dataset."""

    name: str
    folder: str  # below the data folder; "" if the dataset is in the package
    environments: tuple[Environment, ...]  # in DomainBed's order
    classes: tuple[str, ...]  # in label order
    editions: tuple[Edition, ...]  # the current one first
    sources: tuple[Source, ...]
    licence: str  # or "not stated"
    citation: str
    steps: Mapping[str, int]  # training steps, by protocol: "DomainBed", "SWAD", ...
    certainty: str  # sources of the counts


def edition_label(edition: str) -> str:
    """Return a recorded edition in words for people."""
    return edition.replace("of the package", "the copy included in the package")


def independent_unit(dataset: str, environment: int) -> str:
    """Return the unit of an environment for standard errors: its family, or its index."""
    environments = BENCHMARKS[dataset].environments if dataset in BENCHMARKS else ()
    family = environments[environment].family if environment < len(environments) else ""
    return family or str(environment)


def get(name: str) -> Benchmark:
    """Return the benchmark called ``name``; raise CarftError, with similar names, if unknown."""
    if name not in BENCHMARKS:
        raise CarftError(suggestions.unknown("benchmark", name, BENCHMARKS))
    return BENCHMARKS[name]


@functools.cache
def suite_lists() -> dict[str, Any]:
    """Return ImageNet's ids, the labels of ImageNet-A and ImageNet-R, and ObjectNet's folders."""
    return json.loads((ASSETS / "suites" / "imagenet.json").read_text(encoding="utf-8"))


@functools.cache
def imagenet_ids() -> tuple[str, ...]:
    """Return ImageNet's 1,000 WordNet ids, sorted, which is the order of the labels."""
    return tuple(suite_lists()["ids"].split())


@functools.cache
def suite_sets() -> dict[str, Any]:
    """Return facts about ImageNet and its shifted test sets, and zero-shot accuracies."""
    return json.loads((ASSETS / "suites" / "sets.json").read_text(encoding="utf-8"))


@functools.cache
def task_facts() -> dict[str, Any]:
    """Return facts about the tasks, and the source of their zero-shot accuracies."""
    return json.loads((ASSETS / "suites" / "tasks.json").read_text(encoding="utf-8"))


@functools.cache
def class_folders(name: str) -> tuple[str, ...]:
    """Return the class names in a dataset's folders or lists, in label order."""
    table = (ASSETS / "classes" / f"{name}.csv").read_text(encoding="utf-8")
    _, *rows = csv.reader(table.splitlines())
    return tuple(row[0] for row in rows)


def is_known_name(name: str) -> bool:
    """Return True if `carft data verify` accepts the name of this dataset."""
    facts = [*suite_sets()["sets"], *task_facts()["tasks"]]
    return name in BENCHMARKS or any(name == fact["name"] for fact in facts)


def data_dir_problems(data_dir: str | Path) -> list[str]:
    """Return a sentence if ``data_dir``, which contains the datasets' folders, is not a folder."""
    if os.path.isdir(data_dir):
        return []

    fault = "is not a folder" if os.path.exists(data_dir) else "does not exist"
    return [f"--data_dir {data_dir} {fault}; pass the folder that contains the datasets' folders"]


def _benchmark(facts: dict[str, Any]) -> Benchmark:
    """Build a benchmark from its facts in benchmarks.json and its table of classes."""
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
    """Shorten a path as far as it differs from a dataset's name.

    ``pets/`` becomes ``./pets``; ``pets`` is a name and is not changed.
    """
    if os.sep not in name:
        return name

    path = os.path.normpath(name)
    return path if os.sep in path else os.path.join(os.curdir, path)


def dataset_titles(datasets: Iterable[str]) -> dict[str, str]:
    """Return the titles of datasets in tables, reports and cards, by name or path.

    The title of a path is the name of its folder, unless a benchmark or another of ``datasets`` has
    the same name.
    """
    names = list(dict.fromkeys(datasets))
    folders = [os.path.basename(name) for name in names]
    titles = {}
    for name, folder in zip(names, folders):
        titles[name] = name
        if folders.count(folder) == 1 and folder not in BENCHMARKS and folder.strip("."):
            titles[name] = folder
    return titles


def dataset_title(dataset: str) -> str:
    """Return the title of a dataset that is shown without others."""
    return dataset_titles([dataset])[dataset]
