"""The counts of a dataset, against what is known of a benchmark, or against each other.

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
from domainbed_carft.text import quantity

Counts = Mapping[str, Mapping[str, int]]  # environment -> class -> images, in order of position

SUB_SPLITS = {"train", "test", "val", "valid", "validation", "crossval", "trainval", "full"}
MAX_EXAMPLES = 5  # names in a sentence

STRAY = re.compile(r"\.|__MACOSX$|eccv_18_")  # what unpackers and notebooks leave


@dataclass
class Findings:
    """What a comparison found: sentences for people, and the edition with the same counts."""

    problems: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    edition: str | None = None


def compare(name: str, counts: Counts) -> Findings:
    """Compare environments, classes and counts with the benchmark ``name``, or with each other.

    The latter for a dataset that is not a benchmark.
    """
    findings = Findings()
    benchmark = benchmarks.BENCHMARKS.get(name)
    if benchmark is None:
        _compare_unknown(counts, findings)
        return findings

    names = list(counts)
    folders = [environment.folder for environment in benchmark.environments]
    if not _are_environments_of(benchmark, names):
        findings.problems.append(
            f"the environments are {quote_names(names, 8) or 'missing'}, expected "
            f"{quote_names(folders, 8)}. Test environments go by position: rename these folders "
            "and move out all others"
        )
        return findings

    renamed = [f"{n!r} to {folder!r}" for n, folder in zip(names, folders) if n != folder]
    if renamed:
        findings.differences.append(
            f"environments have other names in the same order: rename {', '.join(renamed)}"
        )
    _compare_classes(counts, benchmark.classes, findings)
    _compare_editions(benchmark, dict(zip(folders, counts.values())), findings)
    return findings


def _are_environments_of(benchmark: Benchmark, names: Sequence[str]) -> bool:
    """Whether folders are the benchmark's environments in order, by any of their known names."""
    if len(names) != len(benchmark.environments):
        return False
    known_names = [
        {normalise_name(form) for form in (environment.folder, *environment.also)}
        for environment in benchmark.environments
    ]
    return all(normalise_name(name) in forms for name, forms in zip(names, known_names))


def _compare_unknown(counts: Counts, findings: Findings) -> None:
    """Findings about a dataset that is not a benchmark."""
    environments = {name: classes for name, classes in counts.items() if not STRAY.match(name)}
    findings.problems += [
        f"DomainBed would read the folder {name!r} as environment {position}; move the folder out "
        "of the data folder"
        for position, name in enumerate(counts)
        if name not in environments
    ]
    if not environments:
        findings.problems.append(
            "found no environments; expected a folder with one sub-folder per environment"
        )

    _compare_classes(environments, (), findings)
    _compare_with_imagenet(counts, findings)
    if _is_objectnet(counts):
        findings.problems.append(
            "this is ObjectNet, whose licence forbids to train or tune on it; it is a test set: "
            "carft evaluate RUN --suite imagenet"
        )


def _is_objectnet(counts: Counts) -> bool:
    """Whether more than half of ObjectNet's classes are here, as environments or as classes.

    Only those that count on ImageNet are compared: other datasets share no more than a third.
    """
    objectnet = benchmarks.suite_lists()["objectnet"].keys()
    folder_lists = [counts, *counts.values()]
    return any(2 * len(objectnet & folders.keys()) > len(objectnet) for folders in folder_lists)


def _compare_with_imagenet(counts: Counts, findings: Findings) -> None:
    """Findings about a tree with more than half of ImageNet's classes, but not with just these."""
    ids = set(benchmarks.imagenet_ids())
    command = "carft data verify ImageNet --data_dir DIR, with imagenet or ILSVRC2012 in DIR"
    if 2 * len(ids & counts.keys()) > len(ids):
        findings.problems.append(
            "its folders are ImageNet's classes, not environments; give the folder above, or use "
            f"{command}"
        )

    for name, classes in counts.items():
        missing = sorted(ids - classes.keys())
        extra = sorted(classes.keys() - ids)
        if 2 * len(missing) < len(ids) and (missing or extra):
            findings.differences.append(
                f"environment {name!r} does not have ImageNet's 1,000 classes: missing "
                f"{quote_names(missing) or 'none'}, extra {quote_names(extra) or 'none'}. To "
                f"check ImageNet, use {command}"
            )


def counts_digest(counts: Counts) -> str:
    """Eight hex digits that change with any environment, class or number in ``counts``."""
    return hashlib.sha256(json.dumps(counts, sort_keys=True).encode()).hexdigest()[:8]


def quote_names(names: Iterable[str], limit: int = MAX_EXAMPLES) -> str:
    """The first names, quoted, and how many more there are; "" for no names."""
    names = list(names)
    ending = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + ending


def normalise_name(name: str) -> str:
    """A name in lower case without spaces and punctuation: "Real World" and "real_world" agree."""
    return re.sub(r"[\W_]", "", name.casefold())


def _compare_classes(counts: Counts, known_classes: Sequence[str], findings: Findings) -> None:
    """Findings about class folders, which must be the same in all environments.

    They must be the ``known_classes`` in order, if there are any.
    """
    # Class folders -> environments that have them
    environments_by_classes: dict[tuple[str, ...], list[str]] = {}
    for name, classes in counts.items():
        if classes and SUB_SPLITS.issuperset(map(str.lower, classes)):
            findings.problems.append(
                f"environment {name!r} has the sub-splits {quote_names(classes)}, expected class "
                "folders; merge the sub-splits into one folder per class, each image once"
            )
            continue
        environments_by_classes.setdefault(tuple(classes), []).append(name)
        empty = [label for label, images in classes.items() if not images]
        if empty:
            findings.problems.append(
                f"environment {name!r} has no image in {quote_names(empty)}, so no job can "
                "start; get the images or remove the class from all environments"
            )
    if not environments_by_classes:
        return

    usual = max(environments_by_classes, key=lambda key: len(environments_by_classes[key]))
    usual_environment = environments_by_classes[usual][0]
    expected = tuple(known_classes) or usual
    if len(expected) < 2:
        findings.problems.append(
            f"environment {usual_environment!r} has {quantity(len(usual), 'class folder')}, "
            "expected at least two; the layout is environment/class/image"
        )

    origin = "the known ones" if known_classes else f"those in {usual_environment!r}"
    for folders, names in environments_by_classes.items():
        if folders == expected:
            continue
        if known_classes and [*map(normalise_name, folders)] == [*map(normalise_name, expected)]:
            findings.differences.append(_renamed_classes(names, folders, expected))
        else:
            findings.problems.append(_wrong_classes(names, folders, expected, origin))


def _renamed_classes(names: Sequence[str], folders: Sequence[str], expected: Sequence[str]) -> str:
    """A sentence: environments ``names`` have class folders that are spelled differently."""
    pairs = zip(folders, expected)
    spellings = [f"{folder!r} for {name!r}" for folder, name in pairs if folder != name]
    return (
        f"class folders in {quote_names(names)} have other names in the same order: "
        f"{', '.join(spellings[:MAX_EXAMPLES])}"
    )


def _wrong_classes(
    names: Sequence[str], folders: Sequence[str], expected: Sequence[str], origin: str
) -> str:
    """A sentence: environments ``names`` do not have the class folders of ``origin``."""
    missing = quote_names(name for name in expected if name not in folders) or "none"
    extra = quote_names(name for name in folders if name not in expected) or "none"
    pairs = enumerate(zip_longest(folders, expected))
    first_wrong_label = next(label for label, (folder, name) in pairs if folder != name)
    return (
        f"the class folders in {quote_names(names)} are not {origin}: missing {missing}, extra "
        f"{extra}. Labels are wrong from {first_wrong_label} on; make them the same"
    )


def _compare_editions(benchmark: Benchmark, counts: Counts, findings: Findings) -> None:
    """Findings about counts, against those of the benchmark's nearest edition."""
    totals = {name: sum(classes.values()) for name, classes in counts.items()}

    def distance(edition: Edition) -> int:
        return sum(abs(total - edition.counts[name]) for name, total in totals.items())

    edition = min(benchmark.editions, key=distance)
    differences = []
    for name, classes in counts.items():
        images = {normalise_name(label): number for label, number in classes.items()}
        by_class = [
            f"{label!r} {images[normalise_name(label)]:,} instead of {expected:,}"
            for label, expected in edition.by_class.get(name, {}).items()
            if images.get(normalise_name(label), expected) != expected
        ]
        expected_total = edition.counts[name]
        if by_class or totals[name] != expected_total:
            details = f": {', '.join(by_class[:MAX_EXAMPLES])}" if by_class else ""
            differences.append(
                f"environment {name!r} has {totals[name]:,} images, expected "
                f"{expected_total:,} as in the edition {edition.name} "
                f"({totals[name] - expected_total:+,}){details}"
            )

    findings.differences += differences
    if differences:
        findings.notes.append(f"source of the known counts: {benchmark.certainty}")
    else:
        findings.edition = edition.name
