"""Eleven datasets of CLIP's paper, in torchvision's own folders: a split to train, one to test.

An image's label comes from the name of its class: torchvision counts the class folders or the
entries of a list, so that one more or one fewer shifts all later labels.

Caltech101, SUN397 and EuroSAT have no official splits there: theirs are drawn here, as many
images of each class as CLIP's own splits have, and reported as "own split".
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from domainbed_carft.data import benchmarks, listing
from domainbed_carft.data import verify as verifying
from domainbed_carft.data.comparison import normalise_name, quote_names
from domainbed_carft.data.download import remove_empty_folders_on_error, with_time_limit
from domainbed_carft.data.image_files import ImageDataset
from domainbed_carft.errors import CarftError, brief

Part = dict[str, Any]  # keyword arguments of torchvision's class

BACKGROUND = "BACKGROUND_Google"  # a folder of Caltech101 that is no class


@dataclass(frozen=True)
class Task:
    """One dataset, called as torchvision's class; facts are in ``assets/suites/tasks.json``."""

    name: str
    words: str  # the shipped lists of class names, in torchvision's label order, and of templates
    folder: str  # below the data folder, as torchvision has it
    classes: int
    images: Sequence[int]  # the published numbers of training and test images
    zero_shot: Mapping[str, float]  # of CLIPs by name, in percent
    class_folders: str = ""  # below ``folder``, where the dataset is nothing but class folders
    labels: str = "names"  # or "files" or "numbers": what names an image's class elsewhere
    contexts: str = ""  # another list of templates, where the only one would make the KL zero
    per_class: bool = False  # whether CLIP's paper reports the mean accuracy of the classes
    parts: Sequence[Sequence[Part]] = (({},), ({},))  # what makes up training and test set
    drawn: Sequence[int | None] | None = None  # or how many of each class, None for all others
    by_hand: str = ""

    @property
    def class_names(self) -> Sequence[str]:
        """The dataset's own names of its classes, in the order of the labels."""
        return benchmarks.class_folders(self.name)

    @property
    def split(self) -> str:
        """Who has made its splits."""
        return "own split" if self.drawn else "official split"

    @property
    def remedy(self) -> str:
        """What to do if the data is missing."""
        if self.by_hand:
            return f"torchvision no longer downloads it: {self.by_hand}"
        return f"run `carft data download {self.name} --data_dir` with that folder"


TASKS = {facts["name"]: Task(**facts) for facts in benchmarks.task_facts()["tasks"]}
ZERO_SHOT_SOURCE: str = benchmarks.task_facts()["zero_shot_source"]


def read_split(task: Task, data_dir: str | Path, train: bool) -> ImageDataset:
    """A task's training or test images, always in the same order, labelled by class name.

    Images of classes that the task does not have are left out. Raises CarftError without data
    that torchvision can read.
    """
    for problem in benchmarks.data_dir_problems(data_dir):
        raise CarftError(problem)
    try:
        named_sources = _read_named_sources(task, Path(data_dir), train)
    except Exception as error:  # what torchvision makes of another layout: any type
        # For SUN397 and FGVCAircraft: a class that the dataset's own list lacks.
        is_unlisted = isinstance(error, KeyError)
        reason = f"its lists have no entry {error}" if is_unlisted else brief(error)
        raise CarftError(
            f"{task.name} cannot be read below {data_dir} ({reason}); {task.remedy}"
        ) from error

    labels = {normalise_name(name): label for label, name in enumerate(task.class_names)}
    names = dict.fromkeys(name for _, name in named_sources)
    unknown_classes = [name for name in names if normalise_name(name) not in labels]
    samples = [
        (source, labels[normalise_name(name)])
        for source, name in named_sources
        if normalise_name(name) in labels
    ]
    if task.drawn:
        samples = _draw_split(task, sorted(samples, key=lambda sample: str(sample[0])), train)

    classes = [name.replace("/", "_") for name in task.class_names]
    return ImageDataset(samples, classes, unknown_classes=unknown_classes)


def _read_named_sources(task: Task, data_dir: Path, train: bool) -> list[tuple[Any, str]]:
    """Files or pixels of a task's training or test images, with the names of their classes.

    Raises FileNotFoundError without its folder, and what torchvision raises.
    """
    folder = data_dir / task.folder
    if not folder.is_dir():  # torchvision would create it, for one of them
        raise FileNotFoundError(f"there is no folder {folder}")
    class_folders = folder / task.class_folders
    if task.class_folders and class_folders.is_dir():
        return _samples_in_folders(class_folders)

    named_sources: list[tuple[Any, str]] = []
    for part in task.parts[0 if train else 1]:
        named_sources += _named_samples(task, _torchvision_dataset(task, data_dir, part))
    return named_sources


def class_problems(task: Task, split: str, images: ImageDataset) -> list[str]:
    """A sentence if classes of the task have no image in the split, and one if others have."""
    problems = []
    present = {label for _, label in images.samples}
    missing = [name for label, name in enumerate(task.class_names) if label not in present]
    if missing:
        problems.append(
            f"{split} has no image of {len(missing):,} of the {len(task.class_names):,} classes: "
            f"{quote_names(missing)}; restore their images, or the lists that name them"
        )
    if images.unknown_classes:
        problems.append(
            f"{split} has images of classes that {task.name} does not have: "
            f"{quote_names(images.unknown_classes)}; they are not read. Move them out, or "
            "restore the names"
        )
    return problems


def verify(name: str, data_dir: Path | None, decode: bool = False) -> verifying.DataReport:
    """Compare the counts of a task's two splits with the published ones.

    ``decode`` decodes every image that is a file. Raises CarftError without data that torchvision
    can read.
    """
    task = TASKS[name]
    if data_dir is None:
        raise CarftError(f"{name} needs --data_dir, the folder of {task.folder}")

    splits = [read_split(task, data_dir, train) for train in (True, False)]
    report = replace(make_report(task, data_dir, splits), decoded=decode)
    sources = [source for split in splits for source, _ in split.samples]
    files = [source for source in sources if not isinstance(source, np.ndarray)]
    return verifying.add_decoding_faults(
        report, [os.path.relpath(file, report.root) for file in files]
    )


def make_report(
    task: Task, data_dir: str | Path, splits: Iterable[ImageDataset]
) -> verifying.DataReport:
    """The report on a task's training set, or on that and its test set, without decoding them."""
    counts: dict[str, dict[str, int]] = {}
    problems: list[str] = []
    differences: list[str] = []
    for name, expected, images in zip(("train", "test"), task.images, splits):
        label_counts = Counter(label for _, label in images.samples)
        counts[name] = {
            class_name: label_counts[label] for label, class_name in enumerate(images.classes)
        }
        if name == "train" or not task.drawn:  # a draw leaves nothing to test of a small class
            problems += class_problems(task, name, images)
        if len(images) != expected:
            differences.append(f"{name} has {len(images):,} images, expected {expected:,}")

    return verifying.DataReport(
        name=task.name,
        root=Path(data_dir, task.folder),
        counts=counts,
        problems=problems,
        differences=differences,
        notes=(),
        edition=None if problems or differences else task.split,
    )


def download(name: str, data_dir: Path) -> verifying.DataReport:
    """Let torchvision download a task and verify it.

    Raises CarftError if torchvision cannot download it, or the download fails.
    """
    task = TASKS[name]
    if task.by_hand:
        raise CarftError(f"{task.name}: {task.remedy} (in {data_dir / task.folder})")

    leftovers = data_dir / task.folder / "__MACOSX"  # in Caltech101's archive
    had_leftovers = leftovers.exists()
    print(f"{task.name}: torchvision fetches it to {data_dir / task.folder}", file=sys.stderr)
    try:
        with remove_empty_folders_on_error(data_dir / task.folder):
            for part in (*task.parts[0], *task.parts[1]):
                with_time_limit(
                    functools.partial(_torchvision_dataset, task, data_dir, part, download=True)
                )
        if not had_leftovers:
            shutil.rmtree(leftovers, ignore_errors=True)
    except Exception as error:  # sockets', archives', the disk's
        raise CarftError(
            f"torchvision could not download {task.name} to {data_dir} ({brief(error)}); rerun the "
            "command, or put its archives there by hand"
        ) from error
    return verify(name, data_dir)


def _torchvision_dataset(task: Task, data_dir: Path, part: Part, download: bool = False) -> Any:
    """Torchvision's dataset of one part of a task's split."""
    from torchvision import datasets

    options = {"download": True} if download else {}
    return getattr(datasets, task.name)(str(data_dir), **part, **options)


def _samples_in_folders(root: Path) -> list[tuple[Path, str]]:
    """Files below the class folders with the names of these; torchvision refuses empty folders."""
    files = map(Path, listing.list_classes(root).images)
    return [(root / file, file.parts[0]) for file in files if file.parts[0] != BACKGROUND]


def _named_samples(task: Task, dataset: Any) -> list[tuple[Any, str]]:
    """Files or pixels with the names of their classes, from torchvision's dataset."""
    samples = _samples(dataset)
    if task.labels == "files":
        # torchvision's list of names has no gap where a class is missing, but its labels have.
        return [(file, Path(file).stem.rpartition("_")[0]) for file, _ in samples]

    # Some datasets have numbers only.
    names = task.class_names if task.labels == "numbers" else dataset.classes
    numbers = range(len(names))
    return [
        (source, names[label] if label in numbers else f"number {label}")
        for source, label in samples
    ]


def _samples(dataset: Any) -> Iterable[tuple[Any, int]]:
    """Files or pixels with labels, from the attributes of torchvision's dataset."""
    if hasattr(dataset, "data"):  # CIFAR
        return zip(dataset.data, dataset.targets)

    samples = getattr(dataset, "samples", None) or getattr(dataset, "_samples", None)
    if not samples:
        files = getattr(dataset, "_image_files", None) or getattr(dataset, "_images", None)
        samples = zip(files or (), dataset._labels)
    return [(file, int(label)) for file, label in samples]


def _draw_split(
    task: Task, samples: Sequence[tuple[Any, int]], train: bool
) -> list[tuple[Any, int]]:
    """The images of each class that a fixed draw gives to the split, class by class."""
    n_training, n_test = task.drawn or ()
    generator = np.random.RandomState(0)
    labels = np.array([label for _, label in samples])
    split = []
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label)
        order = generator.permutation(len(positions))
        selected = order[:n_training] if train else order[n_training:][:n_test]
        split += [samples[position] for position in positions[np.sort(selected)]]
    return split
