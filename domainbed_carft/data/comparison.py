"""Counts that were found, against what is known of a benchmark, or against each other.

DomainBed goes by position, of sub-folders and class folders: what shifts a position is a problem,
another name at the same position only a difference.
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
    """Sentences, as `verify.Report` has them, and the name of the edition with these counts."""

    problems: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    edition: str | None = None


def compare(name: str, counts: Counts) -> Findings:
    """Environments, classes and numbers against what is known of ``name``, else each other."""
    findings = Findings()
    benchmark = benchmarks.BENCHMARKS.get(name)
    if benchmark is None:
        _own(counts, findings)
        return findings
    names, folders = list(counts), [environment.folder for environment in benchmark.environments]
    forms = [
        {normalised_name(form) for form in (e.folder, *e.also)} for e in benchmark.environments
    ]
    if len(names) != len(forms) or any(
        normalised_name(n) not in form for n, form in zip(names, forms)
    ):
        findings.problems.append(
            f"the environments are {quoted_names(names, 8) or 'missing'}, expected "
            f"{quoted_names(folders, 8)}. Test environments go by position: rename these folders and "
            "move out all others"
        )
        return findings
    if renamed := [f"{n!r} to {folder!r}" for n, folder in zip(names, folders) if n != folder]:
        findings.differences.append(
            f"environments have other names in the same order: rename {', '.join(renamed)}"
        )
    _classes(counts, benchmark.classes, findings)
    _editions(benchmark, dict(zip(folders, counts.values())), findings)
    return findings


def _own(counts: Counts, findings: Findings) -> None:
    """A data set that nothing is known of."""
    inside = {name: found for name, found in counts.items() if not STRAY.match(name)}
    findings.problems += [
        f"DomainBed would read the folder {name!r} as environment {position}; move the folder out "
        "of the data folder"
        for position, name in enumerate(counts)
        if name not in inside
    ]
    if not inside:
        findings.problems.append(
            "found no environments; expected a folder with one sub-folder per environment"
        )
    _classes(inside, (), findings)
    _imagenet(counts, findings)
    # By the classes that count on ImageNet: other data sets share no more than a third.
    objectnet = benchmarks.suite_lists()["objectnet"].keys()
    if any(
        2 * len(objectnet & found.keys()) > len(objectnet) for found in (counts, *counts.values())
    ):
        findings.problems.append(
            "this is ObjectNet, whose licence forbids to train or tune on it; it is a test set: "
            "carft evaluate RUN --suite imagenet"
        )


def _imagenet(counts: Counts, findings: Findings) -> None:
    """What is said of a tree with more than half of ImageNet's classes, but not with just these."""
    ids = set(benchmarks.imagenet_ids())
    by_name = "carft data verify ImageNet --data_dir DIR, with imagenet or ILSVRC2012 in DIR"
    if 2 * len(ids & counts.keys()) > len(ids):
        findings.problems.append(
            "its folders are ImageNet's classes, not environments; give the folder above, or use "
            f"{by_name}"
        )
    for name, found in counts.items():
        missing = sorted(ids - found.keys())
        extra = sorted(found.keys() - ids)
        if 2 * len(missing) < len(ids) and (missing or extra):
            findings.differences.append(
                f"environment {name!r} does not have ImageNet's 1,000 classes: missing "
                f"{quoted_names(missing) or 'none'}, extra {quoted_names(extra) or 'none'}. To check "
                f"ImageNet, use {by_name}"
            )


def counts_digest(counts: Counts) -> str:
    """Eight hex digits that change with any environment, class or number in ``counts``."""
    return hashlib.sha256(json.dumps(counts, sort_keys=True).encode()).hexdigest()[:8]


def quoted_names(names: Iterable[str], most: int = 5) -> str:
    """The first names, quoted, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def normalised_name(name: str) -> str:
    """What is left of a name that copies write as "Real World", "RealWorld" or "real_world"."""
    return re.sub(r"[\W_]", "", name.casefold())


def _classes(counts: Counts, known: Sequence[str], findings: Findings) -> None:
    """The class folders, which must be the same in all environments, and in the known order."""
    problems = findings.problems
    alike: dict[tuple[str, ...], list[str]] = {}  # class folders -> environments that have them
    for name, found in counts.items():
        if found and SUB_SPLITS.issuperset(map(str.lower, found)):
            problems.append(
                f"environment {name!r} has the sub-splits {quoted_names(found)}, expected class "
                "folders; merge the sub-splits into one folder per class, each picture once"
            )
            continue
        alike.setdefault(tuple(found), []).append(name)
        if empty := [label for label, pictures in found.items() if not pictures]:
            problems.append(
                f"environment {name!r} has no picture in {quoted_names(empty)}, so no job can "
                "start; get the pictures or remove the class from all environments"
            )
    if not alike:
        return
    usual = max(alike, key=lambda found: len(alike[found]))
    expected = tuple(known) or usual
    if len(expected) < 2:
        problems.append(
            f"environment {alike[usual][0]!r} has {counted(len(usual), 'class folder')}, expected "
            "at least two; the layout is environment/class/picture"
        )
    whose = "the known ones" if known else f"those in {alike[usual][0]!r}"
    for classes, names in alike.items():
        if classes == expected:
            continue
        if known and [*map(normalised_name, classes)] == [*map(normalised_name, expected)]:
            others = [f"{f!r} for {k!r}" for f, k in zip(classes, expected) if f != k]
            findings.differences.append(
                f"class folders in {quoted_names(names)} have other names in the same order: "
                f"{', '.join(others[:5])}"
            )
            continue
        missing = quoted_names(one for one in expected if one not in classes) or "none"
        extra = quoted_names(one for one in classes if one not in expected) or "none"
        label = next(i for i, (f, k) in enumerate(zip_longest(classes, expected)) if f != k)
        problems.append(
            f"the class folders in {quoted_names(names)} are not {whose}: missing {missing}, extra "
            f"{extra}. Labels are wrong from {label} on; make them the same"
        )


def _editions(benchmark: Benchmark, found: Counts, findings: Findings) -> None:
    totals = {name: sum(classes.values()) for name, classes in found.items()}

    def distance(edition: Edition) -> int:
        return sum(abs(total - edition.counts[name]) for name, total in totals.items())

    edition = min(benchmark.editions, key=distance)
    named = len(findings.differences)
    for name, classes in found.items():
        plain = {normalised_name(label): count for label, count in classes.items()}
        others = [
            f"{label!r} {plain[normalised_name(label)]:,} instead of {count:,}"
            for label, count in edition.by_class.get(name, {}).items()
            if plain.get(normalised_name(label), count) != count
        ]
        total, expected = totals[name], edition.counts[name]
        if others or total != expected:
            findings.differences.append(
                f"environment {name!r} has {total:,} pictures, expected {expected:,} as in the "
                f"edition {edition.name} ({total - expected:+,})"
                + (f": {', '.join(others[:5])}" if others else "")
            )
    if len(findings.differences) > named:
        findings.notes.append(f"source of the known counts: {benchmark.certainty}")
    else:
        findings.edition = edition.name
