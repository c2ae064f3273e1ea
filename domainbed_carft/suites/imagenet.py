"""ImageNet's validation set and the five test sets shifted from it, as one suite.

The lists are ``assets/suites/imagenet.json`` and ``assets/class_names/imagenet.txt``, made by
``tools/imagenet_lists.py``; folders, counts, sources and terms are ``assets/suites/sets.json``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from domainbed_carft.data import download as downloading
from domainbed_carft.data import verify as verification
from domainbed_carft.data.benchmarks import (
    ASSETS,
    Source,
    imagenet_ids,
    missing_data_dir,
    suite_lists,
    suite_sets,
)
from domainbed_carft.errors import CarftError
from domainbed_carft.suites import imagenet_training
from domainbed_carft.suites.test_sets import (
    SORT_BY_CLASS,
    Folders,
    Suite,
    TestSet,
    no_further_problems,
)

ALL = range(1000)


def ids() -> tuple[str, ...]:
    """The 1,000 WordNet ids, sorted, which is the order of the labels."""
    return imagenet_ids()


@functools.cache
def class_names() -> tuple[str, ...]:
    """OpenAI's name for each of `ids`; two pairs are the same words."""
    text = (ASSETS / "class_names" / "imagenet.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def facts() -> dict[str, dict[str, Any]]:
    """What is known of each test set, by its name."""
    return {one["name"]: one for one in suite_sets()["sets"]}


@functools.cache
def suite() -> Suite:
    """The six sets, the maximum over a class's ids as its score (WiSE-FT's rule for ObjectNet)."""
    published = suite_sets()["zero_shot"]
    return Suite(
        name="imagenet",
        classes=class_names(),
        sets=tuple(_set(fact) for fact in facts().values()),
        left_out="ObjectNet",
        published=published["percent"],
        source=published["source"],
    )


def _set(fact: dict[str, Any]) -> TestSet:
    rule = fact["labels"]
    groups: dict[str, list[int]] = dict(sorted(suite_lists()["objectnet"].items()))
    if rule != "objectnet":
        some = rule in ("imagenet-a", "imagenet-r")
        groups = {ids()[n]: [n] for n in map(int, suite_lists()[rule].split() if some else ALL)}
    labels = {name: label for label, name in enumerate(groups)}
    if rule == "numbers":  # never sorted as text, which puts 10 before 2
        labels = {form.format(n): n for form in ("{}", "{:04}") for n in ALL} | labels
    return TestSet(
        name=fact["name"],
        classes=tuple(groups),
        groups=tuple(map(tuple, groups.values())),
        find=Folders(
            places=tuple(fact["folders"]),
            labels=labels,
            pictures=fact["pictures"],
            each=fact.get("each"),
            more=rule == "objectnet",
            check=mapped_otherwise if rule == "objectnet" else no_further_problems,
            unsorted_remedy=fact.get("unsorted", SORT_BY_CLASS),
        ),
        shifted=fact["name"] != "ImageNet",
        border=fact.get("border", 0),
    )


def joined(mappings: Path) -> dict[str, list[int]]:
    """ObjectNet's folder -> sorted ids, from the four files of its archive.

    Folder, label, ImageNet's names, number of the line with the name, class with that number.
    """
    files = "folder_to_objectnet_label", "objectnet_to_imagenet_1k", "pytorch_to_imagenet_2012_id"
    labels, names, numbers = (
        json.loads((mappings / f"{file}.json").read_text(encoding="utf-8")) for file in files
    )
    lines = (mappings / "imagenet_to_label_2012_v2").read_text(encoding="utf-8").splitlines()
    place = {number: int(index) for index, number in numbers.items()}
    index = {line.strip(): place[number] for number, line in enumerate(lines)}
    return {
        folder: sorted(index[name] for name in names[label].split("; "))
        for folder, label in labels.items()
        if label in names
    }


def mapped_otherwise(root: Path) -> list[str]:
    """A sentence if the ``mappings`` beside ``root`` join classes otherwise than ours."""
    mappings = root.parent / "mappings"
    with contextlib.suppress(OSError, ValueError, LookupError, AttributeError):  # other files
        if not mappings.is_dir() or joined(mappings) == suite_lists()["objectnet"]:
            return []
    return [f"{mappings} does not join its folders to ImageNet's classes as known"]


def verify(name: str, data_dir: Path | None, decode: bool = False) -> verification.Report:
    """What is found of the test set ``name``, and of ImageNet's training set if that is the name.

    Raises CarftError where there is no folder of it.
    """
    if data_dir is None:
        raise CarftError(f"{name} needs --data_dir, the folder that contains it")
    for problem in missing_data_dir(data_dir):
        raise CarftError(problem)
    if name != "ImageNet":
        return _verify_test_set(name, data_dir, decode)

    if imagenet_training.find(data_dir) is None:
        report = _verify_test_set(name, data_dir, decode)
        expected = imagenet_training.expected_folder(str(data_dir))
        return _with_note(report, f"no training set, which only training needs: {expected}")
    training = imagenet_training.verify(data_dir, decode)
    try:
        validation = _verify_test_set(name, data_dir, decode)
    except CarftError as error:
        return _with_note(training, f"no validation set, which only evaluation needs: {error}")
    return _both(training, validation)


def _verify_test_set(name: str, data_dir: Path, decode: bool) -> verification.Report:
    one = next(one for one in suite().sets if one.name == name)
    found = one.find(data_dir)
    if found.root is None:
        raise CarftError(f"{name}: {'; '.join(found.problems)}. {terms(name)}")
    of_label = Counter(label for _, label in found.samples)
    environment = "val" if name == "ImageNet" else name
    counts = {environment: {c: of_label[label] for label, c in enumerate(one.classes)}}
    how = [terms(name)], None if found.problems else "as published", decode
    report = verification.Report(name, found.root, counts, found.problems, [], *how)
    return verification.with_decoding_faults(
        report, [os.path.relpath(p, found.root) for p, _ in found.samples]
    )


def _with_note(report: verification.Report, note: str) -> verification.Report:
    return dataclasses.replace(report, notes=[*report.notes, note])


def _both(training: verification.Report, validation: verification.Report) -> verification.Report:
    """One report of ImageNet's two sets, whose sentences begin with ``train`` or ``val``."""
    named = {"train": training, "val": validation}

    def sentences(kind: str) -> list[str]:
        return [f"{name}: {one}" for name, report in named.items() for one in getattr(report, kind)]

    is_whole = training.edition and validation.edition
    return verification.Report(
        name="ImageNet",
        root=Path(os.path.commonpath([training.root, validation.root])),
        counts={**training.counts, **validation.counts},
        problems=sentences("problems"),
        differences=sentences("differences"),
        notes=[*training.notes, *validation.notes],
        edition=training.edition if is_whole else None,
        decoded=training.decoded and validation.decoded,
        damaged=[*training.damaged, *validation.damaged],
    )


def terms(name: str) -> str:
    """How to get the test set, and on what terms, as sentences."""
    fact = facts()[name]
    by_hand = fact.get("by_hand") or f"carft data download {name} gets it from its authors"
    return f"{by_hand}. Terms: {fact['licence']}"


def download(
    name: str, data_dir: Path, fetch: downloading.Fetch | None = None
) -> verification.Report:
    """As ``data.download``; CarftError with `terms` for what users have to get themselves."""
    fact = facts()[name]
    if not fact["sources"]:
        raise CarftError(f"{name} is not downloaded. {terms(name)}")
    sources = [Source(**one) for one in fact["sources"]]

    def prepare(unpacked: Path, ready: Path) -> None:
        folders = [path for path in sorted(unpacked.iterdir()) if path.is_dir()]
        # One folder is the test set's own, more are its classes.
        (folders[0] if len(folders) == 1 else unpacked).rename(ready)

    place = data_dir / fact["folders"][0]
    return downloading.install(name, place, sources, prepare, verify, fetch)
