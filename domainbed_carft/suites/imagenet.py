"""The suite of ImageNet's validation set and five shifted test sets.

``tools/imagenet_lists.py`` has written ``assets/suites/imagenet.json`` and
``assets/class_names/imagenet.txt``. ``assets/suites/sets.json`` contains folders, counts, sources
and terms.
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

from domainbed_carft.data import downloads, verification
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
from domainbed_carft.suites.suite import SORT_BY_CLASS, Folders, Suite, TestSet, no_further_problems

LABELS: Sequence[int] = range(1000)


@functools.cache
def class_names() -> tuple[str, ...]:
    """Return OpenAI's class names, in label order; two pairs of them are equal."""
    text = (ASSETS / "class_names" / "imagenet.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def facts() -> dict[str, dict[str, Any]]:
    """Return the known facts about the test sets, by name."""
    return {fact["name"]: fact for fact in suite_sets()["sets"]}


@functools.cache
def suite() -> Suite:
    """Return the suite; a class's score is the maximum over its labels (WiSE-FT, ObjectNet)."""
    published = suite_sets()["zero_shot"]
    return Suite(
        name="imagenet",
        classes=class_names(),
        sets=tuple(_test_set(fact) for fact in facts().values()),
        excluded="ObjectNet",
        published=published["percent"],
        source=published["source"],
    )


def _test_set(fact: dict[str, Any]) -> TestSet:
    """Build a test set from an entry of sets.json."""
    rule = fact["labels"]
    is_objectnet = rule == "objectnet"
    groups = _groups_by_folder(rule)
    labels = {name: label for label, name in enumerate(groups)}
    if rule == "numbers":  # not by sorting, because the text "10" is before "2"
        labels = {form.format(n): n for form in ("{}", "{:04}") for n in LABELS} | labels

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
            unsorted_hint=fact.get("unsorted", SORT_BY_CLASS),
        ),
        is_shifted=fact["name"] != "ImageNet",
        border=fact.get("border", 0),
    )


def _groups_by_folder(rule: str) -> dict[str, list[int]]:
    """Return the labels that count as each class folder of a test set.

    ``rule`` is a value of "labels" in sets.json.
    """
    if rule == "objectnet":
        return dict(sorted(suite_lists()["objectnet"].items()))

    labels = LABELS
    if rule in ("imagenet-a", "imagenet-r"):  # each with 200 of the classes
        labels = [int(label) for label in suite_lists()[rule].split()]
    return {imagenet_ids()[label]: [label] for label in labels}


def objectnet_class_labels(mappings: Path) -> dict[str, list[int]]:
    """Return ImageNet's labels, sorted, for each folder of ObjectNet, from its mapping files."""

    def read(name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((mappings / name).read_text(encoding="utf-8"))
        return content

    objectnet_names = read("folder_to_objectnet_label.json")
    imagenet_names = read("objectnet_to_imagenet_1k.json")
    label_numbers = read("pytorch_to_imagenet_2012_id.json")

    # Folder -> name in ObjectNet -> names in ImageNet -> line number of the name -> label.
    labels_by_number = {number: int(label) for label, number in label_numbers.items()}
    lines = (mappings / "imagenet_to_label_2012_v2").read_text(encoding="utf-8").splitlines()
    labels_by_name = {line.strip(): labels_by_number[number] for number, line in enumerate(lines)}
    return {
        folder: sorted(labels_by_name[name] for name in imagenet_names[objectnet_name].split("; "))
        for folder, objectnet_name in objectnet_names.items()
        if objectnet_name in imagenet_names
    }


def mapping_problems(root: Path) -> list[str]:
    """Return a sentence if the folder ``mappings`` next to ``root`` differs from the known one."""
    mappings = root.parent / "mappings"
    with contextlib.suppress(OSError, ValueError, LookupError, AttributeError):  # invalid files
        if not mappings.is_dir() or objectnet_class_labels(mappings) == suite_lists()["objectnet"]:
            return []
    return [f"{mappings} assigns its folders to other classes of ImageNet than expected"]


def verify(name: str, data_dir: Path | None, decode: bool = False) -> verification.DataReport:
    """Verify the test set ``name``; for ImageNet, also the training set if it is there.

    Args:
        name: name of the test set.
        data_dir: folder of the datasets' folders.
        decode: decode every image.

    Raises:
        CarftError: if the folder is missing.
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
        return _with_note(report, f"no training set at {expected}; only training needs it")
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
        raise CarftError(f"{name}: {'; '.join(copy.problems)}. {access_terms(name)}")

    label_counts = Counter(label for _, label in copy.samples)
    class_counts = {c: label_counts[label] for label, c in enumerate(test_set.classes)}
    environment = "val" if name == "ImageNet" else name
    report = verification.DataReport(
        name,
        copy.root,
        {environment: class_counts},
        copy.problems,
        differences=[],
        notes=[access_terms(name)],
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
    """Join two reports; their sentences begin with ``train`` or ``val``."""
    reports = {"train": training, "val": validation}

    def sentences(kind: str) -> list[str]:
        return [
            f"{name}: {sentence}"
            for name, report in reports.items()
            for sentence in getattr(report, kind)
        ]

    return verification.DataReport(
        name="ImageNet",
        root=Path(os.path.commonpath([training.root, validation.root])),
        counts={**training.counts, **validation.counts},
        problems=sentences("problems"),
        differences=sentences("differences"),
        notes=[*training.notes, *validation.notes],
        edition=training.edition if validation.edition else None,
        decoded=training.decoded and validation.decoded,
        damaged=[*training.damaged, *validation.damaged],
    )


def access_terms(name: str) -> str:
    """Return sentences about how to get the test set, and its terms of use."""
    fact = facts()[name]
    by_hand = fact.get("by_hand") or f"carft data download {name} downloads it from its authors"
    return f"{by_hand}. Terms: {fact['licence']}"


def download(
    name: str,
    data_dir: Path,
    fetch: downloads.Fetch | None = None,
    given_files: Sequence[Path] = (),
) -> verification.DataReport:
    """Download and verify a test set; raise CarftError with the terms if users have to get it.

    ``given_files`` are files that need no download, or folders that contain them.
    """
    fact = facts()[name]
    if not fact["sources"]:
        raise CarftError(f"{name} is not downloaded. {access_terms(name)}")
    sources = [Source(**source) for source in fact["sources"]]

    def prepare(unpacked: Path, ready: Path) -> None:
        folders = [path for path in sorted(unpacked.iterdir()) if path.is_dir()]
        # A single folder is the test set's; several folders are its classes.
        (folders[0] if len(folders) == 1 else unpacked).rename(ready)

    target = data_dir / fact["folders"][0]
    return downloads.install(name, target, sources, prepare, verify, fetch, given_files=given_files)
