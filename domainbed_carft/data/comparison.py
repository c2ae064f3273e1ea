"""Comparison of a dataset's counts with a known benchmark, or between its environments.

DomainBed numbers sub-folders and class folders by position. So a shifted position is a problem, and
another name at the same position is only a difference.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from domainbed_carft.data import benchmarks
from domainbed_carft.data.benchmarks import Benchmark, Edition
from domainbed_carft.errors import CarftError
from domainbed_carft.wording import quantity

Counts = Mapping[str, Mapping[str, int]]  # environment -> class -> images, in order of position

SUB_SPLITS = {"train", "test", "val", "valid", "validation", "crossval", "trainval", "full"}
MAX_EXAMPLES = 5  # names in a sentence

STRAY = re.compile(r"\.|__MACOSX$|eccv_18_")  # folders that unpackers and notebooks leave


@dataclass
class Findings:
    """The result of a comparison, in sentences."""

    problems: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    edition: str | None = None  # the edition with the same counts


def compare(name: str, counts: Counts, is_list: bool = False) -> Findings:
    """Compare a dataset with the benchmark ``name``, or its environments with each other.

    Args:
        name: name of the dataset.
        counts: its images.
        is_list: True if a list names the environments, so that none is a stray folder.
    """
    findings = Findings()
    benchmark = benchmarks.BENCHMARKS.get(name)
    if benchmark is None:
        _check_own_dataset(counts, is_list, findings)
        return findings

    names = list(counts)
    folders = [environment.folder for environment in benchmark.environments]
    if not _match_environments(benchmark, names):
        findings.problems.append(
            f"the environments are {quote_names(names, 8) or 'missing'}, expected "
            f"{quote_names(folders, 8)}. Test environments are numbered by position: rename these "
            "folders and move out all others"
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


def _match_environments(benchmark: Benchmark, names: Sequence[str]) -> bool:
    """Return True if folders are the benchmark's environments in order, by any known name."""
    if len(names) != len(benchmark.environments):
        return False
    known_names = [
        {normalise_name(name) for name in (environment.folder, *environment.aliases)}
        for environment in benchmark.environments
    ]
    return all(normalise_name(name) in valid for name, valid in zip(names, known_names))


def _check_own_dataset(counts: Counts, is_list: bool, findings: Findings) -> None:
    """Add findings about a dataset that is not a benchmark."""
    environments = {
        name: classes for name, classes in counts.items() if is_list or not STRAY.match(name)
    }
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
            "this is ObjectNet, whose licence forbids training and tuning on it; it is a test set: "
            "carft evaluate RUN --suite imagenet"
        )


def _is_objectnet(counts: Counts) -> bool:
    """Return True if environments or classes include more than half of ObjectNet's classes.

    Only ObjectNet's classes that are also ImageNet's are compared: other datasets share at most a
    third of them.
    """
    objectnet = benchmarks.suite_lists()["objectnet"].keys()
    folder_lists = [counts, *counts.values()]
    return any(2 * len(objectnet & folders.keys()) > len(objectnet) for folders in folder_lists)


def _compare_with_imagenet(counts: Counts, findings: Findings) -> None:
    """Add findings about a folder with most of ImageNet's classes, but not exactly these."""
    ids = set(benchmarks.imagenet_ids())
    command = "carft data verify ImageNet --data_dir DIR, with imagenet or ILSVRC2012 in DIR"
    if 2 * len(ids & counts.keys()) > len(ids):
        findings.problems.append(
            "its folders are ImageNet's classes, not environments; pass the parent folder, or use "
            f"{command}"
        )

    for name, classes in counts.items():
        missing = sorted(ids - classes.keys())
        extra = sorted(classes.keys() - ids)
        if 2 * len(missing) < len(ids) and (missing or extra):
            findings.differences.append(
                f"environment {name!r} does not have ImageNet's 1,000 classes: missing "
                f"{quote_names(missing) or 'none'}, extra {quote_names(extra) or 'none'}. To "
                f"verify ImageNet, use {command}"
            )


def require_same_classes(classes: Mapping[str, Collection[str]]) -> None:
    """Raise CarftError if an environment's classes differ from the first environment's."""
    first = next(iter(classes), "")
    for environment, names in classes.items():
        if [*names] == [*classes[first]]:
            continue
        differing = sorted({*names} ^ {*classes[first]})
        fault = (
            f"only one of them has {quote_names(differing)}" if differing else "the order differs"
        )
        if _has_lookalikes(differing):
            fault += f" ({_LOOKALIKES})"
        raise CarftError(
            f"environments {first!r} and {environment!r} must have the same classes; {fault}"
        )


def counts_digest(counts: Counts) -> str:
    """Return eight hex digits that depend on each environment, class and number in ``counts``."""
    return hashlib.sha256(json.dumps(counts, sort_keys=True).encode()).hexdigest()[:8]


def quote_names(names: Iterable[str], limit: int = MAX_EXAMPLES) -> str:
    """Quote the first names, and append the number of the others.

    Combining characters are escaped, since a name with them can look like another name.
    """
    names = list(names)
    ending = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    quoted = [
        repr(name) if unicodedata.is_normalized("NFC", name) else ascii(name)
        for name in names[:limit]
    ]
    return ", ".join(quoted) + ending


_LOOKALIKES = "two names look equal, but one is in the Unicode form NFC and the other in NFD"


def _has_lookalikes(names: Iterable[str]) -> bool:
    """Return True if some of the distinct names are displayed alike."""
    distinct = {*names}
    return len({unicodedata.normalize("NFC", name) for name in distinct}) < len(distinct)


def normalise_name(name: str) -> str:
    """Return a name in lower case without spaces and punctuation, such as "realworld"."""
    return re.sub(r"[\W_]", "", name.casefold())


def _compare_classes(counts: Counts, known_classes: Sequence[str], findings: Findings) -> None:
    """Add findings about class folders.

    They must be the same in all environments, and equal the ``known_classes`` if there are any.
    """
    # Class folders -> environments with these folders
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
                f"environment {name!r} has no image in {quote_names(empty)}, so that jobs cannot "
                "start; restore the images or remove the class from all environments"
            )
    if not environments_by_classes:
        return

    most_common = max(environments_by_classes, key=lambda key: len(environments_by_classes[key]))
    reference_environment = environments_by_classes[most_common][0]
    expected = tuple(known_classes) or most_common
    if len(expected) < 2:
        findings.problems.append(
            f"environment {reference_environment!r} has "
            f"{quantity(len(most_common), 'class folder')}, "
            "expected at least two; the layout is environment/class/image"
        )

    reference = "the known ones" if known_classes else f"the ones in {reference_environment!r}"
    for folders, names in environments_by_classes.items():
        if folders == expected:
            continue
        if known_classes and [*map(normalise_name, folders)] == [*map(normalise_name, expected)]:
            findings.differences.append(_renamed_classes(names, folders, expected))
        else:
            findings.problems.append(_wrong_classes(names, folders, expected, reference))


def _renamed_classes(names: Sequence[str], folders: Sequence[str], expected: Sequence[str]) -> str:
    """Return a sentence: the class folders of environments ``names`` are spelled differently."""
    pairs = zip(folders, expected)
    spellings = [f"{folder!r} for {name!r}" for folder, name in pairs if folder != name]
    return (
        f"class folders in {quote_names(names)} have other names in the same order: "
        f"{', '.join(spellings[:MAX_EXAMPLES])}"
    )


def _wrong_classes(
    names: Sequence[str], folders: Sequence[str], expected: Sequence[str], reference: str
) -> str:
    """Return a sentence: environments ``names`` do not have the expected class folders."""
    missing = quote_names(name for name in expected if name not in folders) or "none"
    extra = quote_names(name for name in folders if name not in expected) or "none"
    pairs = enumerate(zip_longest(folders, expected))
    hint = f" ({_LOOKALIKES})" if _has_lookalikes([*expected, *folders]) else ""
    first_wrong_label = next(label for label, (folder, name) in pairs if folder != name)
    return (
        f"the class folders in {quote_names(names)} are not {reference}: missing {missing}, extra "
        f"{extra}. Labels are wrong from {first_wrong_label} on; make the class folders equal{hint}"
    )


def _compare_editions(benchmark: Benchmark, counts: Counts, findings: Findings) -> None:
    """Add findings about counts that differ from the benchmark's nearest edition."""
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
                f"{expected_total:,} in the edition {edition.name} "
                f"({totals[name] - expected_total:+,}){details}"
            )

    findings.differences += differences
    if differences:
        findings.notes.append(f"source of the known counts: {benchmark.certainty}")
    else:
        findings.edition = edition.name
