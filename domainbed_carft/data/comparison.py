"""Counts that were found, against what is known of a benchmark, or against each other.

DomainBed goes by position: environment i is the i-th sub-folder, label k the k-th class folder. So
what shifts a position is a problem, and another name at the same position is only a difference.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from domainbed_carft.data import benchmarks
from domainbed_carft.data.benchmarks import Benchmark, Edition
from domainbed_carft.text import counted

Counts = Mapping[str, Mapping[str, int]]  # environment -> class -> pictures, in order of position

SUB_SPLITS = {"train", "test", "val", "valid", "validation", "crossval", "trainval", "full"}
STRAY = re.compile(r"\.|__MACOSX$|eccv_18_")  # what unpackers and notebooks leave


@dataclass
class Findings:
    """Sentences: what gives wrong results or none, what is not as known, what is good to know.

    ``edition`` is the name of the edition whose counts these are, if it is one.
    """

    problems: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    edition: str | None = None


def compare(name: str, counts: Counts) -> Findings:
    """Environments, classes and numbers against what is known of ``name``, else each other."""
    findings = Findings()
    benchmark = benchmarks.BENCHMARKS.get(name)
    if benchmark is None:
        place = {name: name for name in counts if not STRAY.match(name)}
        if not place:
            findings.problems.append(
                "there are no environments; expected the folder whose sub-folders they are"
            )
        if len(place) == 1:
            findings.notes.append(
                f"{next(iter(place))!r} is the only environment, so none can be left out"
            )
    else:
        place = _places(benchmark, list(counts))
        _environments(benchmark, list(counts), place, findings)
    findings.problems += [
        f"the folder {name!r} would be read as environment {index} and move the index of those "
        "after it; move it out of the data folder"
        for index, name in enumerate(counts)
        if name not in place
    ]
    _classes({name: counts[name] for name in place}, benchmark, findings)
    if benchmark is not None:
        _editions(benchmark, {place[name]: counts[name] for name in place}, findings)
    return findings


def digest(counts: Counts) -> str:
    """Eight hex digits that tell counts apart by any environment, class or number in them."""
    return hashlib.sha256(json.dumps(counts, sort_keys=True).encode()).hexdigest()[:8]


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first names, quoted, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def _plain(name: str) -> str:
    """What is left of a name that copies write as "Real World", "RealWorld" or "real_world"."""
    return re.sub(r"[\W_]", "", name.casefold())


def _places(benchmark: Benchmark, names: Sequence[str]) -> dict[str, str]:
    """Name that was found -> folder of the environment that it stands for."""
    place = {e.folder: e.folder for e in benchmark.environments if e.folder in names}
    for environment in benchmark.environments:
        if environment.folder not in place.values():
            forms = {_plain(form) for form in (environment.folder, *environment.also)}
            alike = [name for name in names if name not in place and _plain(name) in forms]
            if alike:
                place[alike[0]] = environment.folder
    return {name: place[name] for name in names if name in place}


def _environments(
    benchmark: Benchmark, names: Sequence[str], place: Mapping[str, str], findings: Findings
) -> None:
    folders = [e.folder for e in benchmark.environments]
    missing = [folder for folder in folders if folder not in place.values()]
    expected = [folder for folder in folders if folder not in missing]
    if missing:
        found = f"{len(names)} sub-folders: {listed(names, 8)}" if names else "no sub-folders"
        findings.problems.append(
            f"no environment {listed(missing)} ({found}); expected {listed(folders, 8)}"
        )
    renamed = [f"{name!r} to {folder!r}" for name, folder in place.items() if name != folder]
    remedy = f"rename {', '.join(renamed)}" if renamed else "rename them"
    if list(place.values()) != expected:
        findings.problems.append(
            f"environments are read in the order {listed(place, 8)}, expected "
            f"{listed(expected, 8)}: a test environment's index would mean another one; {remedy}"
        )
    elif renamed:
        findings.differences.append(
            f"environments have other names, though in the same order: {remedy}"
        )


def _classes(counts: Counts, benchmark: Benchmark | None, findings: Findings) -> None:
    """The class folders, which must be the same in all environments, and in the known order."""
    alike: dict[tuple[str, ...], list[str]] = {}  # class folders -> environments that have them
    for name, found in counts.items():
        if found and SUB_SPLITS.issuperset(map(str.lower, found)):
            findings.problems.append(
                f"environment {name!r} has the sub-splits {listed(found)} where its classes should "
                "be; merge them into one folder a class, without a second copy of any picture"
            )
        else:
            alike.setdefault(tuple(found), []).append(name)
            empty = [label for label, pictures in found.items() if not pictures]
            findings.problems += [
                f"environment {name!r} has no picture in {listed(empty)}, which ends a job when it "
                "starts; get the pictures, or remove the class everywhere"
            ] * bool(empty)
    if not alike:
        return
    usual = max(alike, key=lambda found: len(alike[found]))
    expected = benchmark.classes if benchmark else usual
    if len(expected) < 2:
        findings.problems.append(
            f"environment {alike[usual][0]!r} has {counted(len(usual), 'class folder')}, expected "
            "at least two; the layout is environment/class/picture"
        )
    for classes, names in alike.items():
        others = [f"{f!r} for {k!r}" for f, k in zip(classes, expected) if f != k]
        if benchmark and list(map(_plain, classes)) == list(map(_plain, expected)):
            findings.differences += [
                f"class folders in {listed(names)} have other names, though in the same order: "
                f"{', '.join(others[:5])}"
            ] * bool(others)
        elif classes != expected:
            missing = listed(one for one in expected if one not in classes) or "none"
            extra = listed(one for one in classes if one not in expected) or "none"
            label = next(i for i, (f, k) in enumerate(zip_longest(classes, expected)) if f != k)
            findings.problems.append(
                f"the class folders in {listed(names)} are not "
                f"{'the known ones' if benchmark else f'those in {alike[usual][0]!r}'}: missing "
                f"{missing}, extra {extra}, so labels are wrong from {label} on; make them the same"
            )


def _editions(benchmark: Benchmark, found: Counts, findings: Findings) -> None:
    """``found`` has the names that are known."""
    totals = {name: sum(classes.values()) for name, classes in found.items()}

    def distance(edition: Edition) -> int:
        return sum(abs(total - edition.counts[name]) for name, total in totals.items())

    edition = min(benchmark.editions, key=distance)
    named = len(findings.differences)
    for name, classes in found.items():
        plain = {_plain(label): count for label, count in classes.items()}
        others = [
            f"{label!r} {plain[_plain(label)]:,} in place of {count:,}"
            for label, count in edition.by_class.get(name, {}).items()
            if plain.get(_plain(label), count) != count
        ]
        if others or totals[name] != edition.counts[name]:
            findings.differences.append(
                f"environment {name!r} has {totals[name]:,} pictures, {edition.counts[name]:,} in "
                f"the edition {edition.name} ({totals[name] - edition.counts[name]:+,})"
                + (f": {', '.join(others[:5])}" if others else "")
            )
    if len(findings.differences) > named:
        findings.notes.append(f"source of the known counts: {benchmark.certainty}")
    elif len(found) == len(benchmark.environments):
        findings.edition = edition.name
