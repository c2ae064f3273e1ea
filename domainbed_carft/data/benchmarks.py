"""What is known of each benchmark before its data is seen.

Facts stand in ``assets/benchmarks.json``, class names and counts by environment, empty if unknown,
in ``assets/classes/NAME.csv``. ``assets/README.md`` names the sources.
"""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from domainbed_carft import text
from domainbed_carft.errors import CarftError

ASSETS = files("domainbed_carft") / "assets"


@dataclass(frozen=True)
class Environment:
    """One environment: its label in DomainBed's tables, its folder, names that copies give it."""

    label: str
    folder: str
    also: Sequence[str] = ()


@dataclass(frozen=True)
class Source:
    """Where a file of the data set is published, and the name to save it under."""

    url: str
    file: str

    @property
    def is_archive(self) -> bool:
        """Whether it is to be unpacked."""
        return self.file.endswith((".zip", ".tar", ".tar.gz"))


@dataclass(frozen=True)
class Edition:
    """One version of the data: environment folder -> pictures, and by class where known."""

    name: str
    counts: Mapping[str, int]
    by_class: Mapping[str, Mapping[str, int]]

    @property
    def total(self) -> int:
        """Pictures in all environments."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class Benchmark:
    """One data set."""

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


def get(name: str) -> Benchmark:
    """The benchmark called ``name``; CarftError with the nearest names if it is unknown."""
    if name not in BENCHMARKS:
        raise CarftError(text.unknown("benchmark", name, BENCHMARKS))
    return BENCHMARKS[name]


@functools.cache
def suite_lists() -> dict[str, Any]:
    """ImageNet's 1,000 ids, the classes of ImageNet-A and -R among them, ObjectNet's folders."""
    return json.loads((ASSETS / "suites" / "imagenet.json").read_text(encoding="utf-8"))


def _benchmark(facts: dict[str, Any]) -> Benchmark:
    path = ASSETS / "classes" / f"{facts['name']}.csv"
    header, *rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
    columns = {
        environment: {row[0]: int(row[column]) for row in rows if row[column]}
        for column, environment in enumerate(header[1:], start=1)
    }
    by_class = {environment: counts for environment, counts in columns.items() if counts}
    totals = {environment: sum(counts.values()) for environment, counts in columns.items()}
    editions = [(one["name"], {**totals, **one.get("counts", {})}) for one in facts["editions"]]
    read = {
        "environments": tuple(Environment(**one) for one in facts["environments"]),
        "classes": tuple(row[0] for row in rows),
        "editions": tuple(Edition(name, counts, by_class) for name, counts in editions),
        "sources": tuple(Source(**one) for one in facts["sources"]),
    }
    return Benchmark(**{**facts, **read})


BENCHMARKS = {
    facts["name"]: _benchmark(facts)
    for facts in json.loads((ASSETS / "benchmarks.json").read_text(encoding="utf-8"))
}
