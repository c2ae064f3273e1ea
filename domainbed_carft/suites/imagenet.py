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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from domainbed_carft.data import download as downloading
from domainbed_carft.data import verify as verification
from domainbed_carft.data.benchmarks import (
    ASSETS,
    Source,
    data_dir_problems,
    imagenet_ids,
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

ALL: Sequence[int] = range(1000)


def wordnet_ids() -> tuple[str, ...]:
    """The 1,000 WordNet ids, sorted, which is the order of the labels."""
    return imagenet_ids()


@functools.cache
def class_names() -> tuple[str, ...]:
    """OpenAI's name for each of `wordnet_ids`; two pairs are the same words."""
    text = (ASSETS / "class_names" / "imagenet.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def facts() -> dict[str, dict[str, Any]]:
    """What is known of each test set, by its name."""
    return {fact["name"]: fact for fact in suite_sets()["sets"]}


@functools.cache
def suite() -> Suite:
    """The six sets, the maximum over a class's ids as its score (WiSE-FT's rule for ObjectNet)."""
    published = suite_sets()["zero_shot"]
    return Suite(
        name="imagenet",
        classes=class_names(),
        sets=tuple(_test_set(fact) for fact in facts().values()),
        left_out="ObjectNet",
        published=published["percent"],
        source=published["source"],
    )


def _test_set(fact: dict[str, Any]) -> TestSet:
    """The test set that an entry of sets.json describes."""
    rule = fact["labels"]
    is_objectnet = rule == "objectnet"
    groups = _groups_by_folder(rule)
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
            image_count=fact["images"],
            images_per_class=fact.get("each"),
            has_further_folders=is_objectnet,
            find_further_problems=mapping_problems if is_objectnet else no_further_problems,
            unsorted_remedy=fact.get("unsorted", SORT_BY_CLASS),
        ),
        is_shifted=fact["name"] != "ImageNet",
        border=fact.get("border", 0),
    )


def _groups_by_folder(rule: str) -> dict[str, list[int]]:
    """The class folders of a test set -> the labels that count as each.

    ``rule``: one of the words under "labels" in sets.json.
    """
    if rule == "objectnet":
        return dict(sorted(suite_lists()["objectnet"].items()))

    labels = ALL
    if rule in ("imagenet-a", "imagenet-r"):  # which have 200 of the classes each
        labels = [int(label) for label in suite_lists()[rule].split()]
    return {wordnet_ids()[label]: [label] for label in labels}


def objectnet_class_labels(mappings: Path) -> dict[str, list[int]]:
    """ObjectNet's folder -> sorted labels of ImageNet, from the four files of its archive.

    Folder, name in ObjectNet, names in ImageNet, number of the line with the name, label of that
    number.
    """

    def read(name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((mappings / name).read_text(encoding="utf-8"))
        return content

    objectnet_names = read("folder_to_objectnet_label.json")
    imagenet_names = read("objectnet_to_imagenet_1k.json")
    label_numbers = read("pytorch_to_imagenet_2012_id.json")

    label_of_number = {number: int(label) for label, number in label_numbers.items()}
    lines = (mappings / "imagenet_to_label_2012_v2").read_text(encoding="utf-8").splitlines()
    label_of_name = {line.strip(): label_of_number[number] for number, line in enumerate(lines)}
    return {
        folder: sorted(label_of_name[name] for name in imagenet_names[objectnet_name].split("; "))
        for folder, objectnet_name in objectnet_names.items()
        if objectnet_name in imagenet_names
    }


def mapping_problems(root: Path) -> list[str]:
    """A sentence if the ``mappings`` beside ``root`` join classes otherwise than ours."""
    mappings = root.parent / "mappings"
    with contextlib.suppress(OSError, ValueError, LookupError, AttributeError):  # other files
        if not mappings.is_dir() or objectnet_class_labels(mappings) == suite_lists()["objectnet"]:
            return []
    return [f"{mappings} does not join its folders to ImageNet's classes as known"]


def verify(name: str, data_dir: Path | None, decode: bool = False) -> verification.DataReport:
    """What is found of the test set ``name``, and of ImageNet's training set if that is the name.

    Raises CarftError where there is no folder of it.
    """
    if data_dir is None:
        raise CarftError(f"{name} needs --data_dir, the folder that contains it")
    for problem in data_dir_problems(data_dir):
        raise CarftError(problem)
    if name != "ImageNet":
        return _verify_test_set(name, data_dir, decode)

    if imagenet_training.find_training_set(data_dir) is None:
        report = _verify_test_set(name, data_dir, decode)
        expected = imagenet_training.expected_folder(str(data_dir))
        return _with_note(report, f"no training set, which only training needs: {expected}")
    training = imagenet_training.verify(data_dir, decode)
    try:
        validation = _verify_test_set(name, data_dir, decode)
    except CarftError as error:
        return _with_note(training, f"no validation set, which only evaluation needs: {error}")
    return _joint_report(training, validation)


def _verify_test_set(name: str, data_dir: Path, decode: bool) -> verification.DataReport:
    (test_set,) = [test_set for test_set in suite().sets if test_set.name == name]
    copy = test_set.find(data_dir)
    if copy.root is None:
        raise CarftError(f"{name}: {'; '.join(copy.problems)}. {terms(name)}")

    label_counts = Counter(label for _, label in copy.samples)
    class_counts = {c: label_counts[label] for label, c in enumerate(test_set.classes)}
    environment = "val" if name == "ImageNet" else name
    report = verification.DataReport(
        name,
        copy.root,
        {environment: class_counts},
        copy.problems,
        differences=[],
        notes=[terms(name)],
        edition=None if copy.problems else "as published",
        decoded=decode,
    )
    return verification.add_decoding_faults(
        report, [os.path.relpath(path, copy.root) for path, _ in copy.samples]
    )


def _with_note(report: verification.DataReport, note: str) -> verification.DataReport:
    return dataclasses.replace(report, notes=[*report.notes, note])


def _joint_report(
    training: verification.DataReport, validation: verification.DataReport
) -> verification.DataReport:
    """One report of ImageNet's two sets, whose sentences begin with ``train`` or ``val``."""
    named = {"train": training, "val": validation}

    def sentences(kind: str) -> list[str]:
        return [
            f"{name}: {sentence}"
            for name, report in named.items()
            for sentence in getattr(report, kind)
        ]

    is_whole = training.edition and validation.edition
    return verification.DataReport(
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
) -> verification.DataReport:
    """As ``data.download``; CarftError with `terms` for what users have to get themselves."""
    fact = facts()[name]
    if not fact["sources"]:
        raise CarftError(f"{name} is not downloaded. {terms(name)}")
    sources = [Source(**source) for source in fact["sources"]]

    def prepare(unpacked: Path, ready: Path) -> None:
        folders = [path for path in sorted(unpacked.iterdir()) if path.is_dir()]
        # One folder is the test set's own, more are its classes.
        (folders[0] if len(folders) == 1 else unpacked).rename(ready)

    place = data_dir / fact["folders"][0]
    return downloading.install(name, place, sources, prepare, verify, fetch)
