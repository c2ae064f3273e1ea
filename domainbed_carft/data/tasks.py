"""Eleven datasets of CLIP's paper, in torchvision's folders, each with a training and a test split.

Labels are looked up by class name, because torchvision counts class folders or entries of a list,
so that a missing or additional class would shift all later labels.

Caltech101, SUN397 and EuroSAT have no official splits in torchvision. Their splits are drawn here,
with as many images of each class as in CLIP's splits, and reported as "own split".
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

from domainbed_carft.data import benchmarks, listing, verification
from domainbed_carft.data.comparison import normalise_name, quote_names
from domainbed_carft.data.downloads import remove_empty_folders_on_error, with_time_limit
from domainbed_carft.data.image_files import ImageDataset
from domainbed_carft.errors import CarftError, brief

Part = dict[str, Any]  # keyword arguments of torchvision's class

BACKGROUND = "BACKGROUND_Google"  # a folder of Caltech101 that is not a class


@dataclass(frozen=True)
class Task:
    """One dataset, described in ``assets/suites/tasks.json``."""

    name: str  # of torchvision's class
    words: str  # name of the included lists of class names, in label order, and of templates
    folder: str  # below the data folder, given by torchvision
    classes: int
    images: Sequence[int]  # published numbers of training and test images
    zero_shot: Mapping[str, float]  # accuracy in percent, by CLIP model
    class_folders: str = ""  # below ``folder``, if the dataset consists of class folders
    labels: str = "names"  # otherwise: class names, "files" (their names) or "numbers"
    contexts: str = ""  # another list of templates, if the list has one, whose KL would be zero
    per_class: bool = False  # CLIP's paper reports the mean accuracy of the classes
    parts: Sequence[Sequence[Part]] = (({},), ({},))  # parts of the training and the test set
    drawn: Sequence[int | None] | None = None  # images per class to draw, None for the rest
    by_hand: str = ""  # instructions, if torchvision cannot download the dataset

    @property
    def class_names(self) -> Sequence[str]:
        """Class names in the dataset's folders or lists, in label order."""
        return benchmarks.class_folders(self.name)

    @property
    def split(self) -> str:
        """Origin of the splits."""
        return "own split" if self.drawn else "official split"

    @property
    def hint(self) -> str:
        """Advice if the data is missing."""
        if self.by_hand:
            return f"torchvision no longer downloads it: {self.by_hand}"
        return f"run `carft data download {self.name} --data_dir` with that folder"


TASKS = {facts["name"]: Task(**facts) for facts in benchmarks.task_facts()["tasks"]}
ZERO_SHOT_SOURCE: str = benchmarks.task_facts()["zero_shot_source"]


def read_split(task: Task, data_dir: str | Path, train: bool) -> ImageDataset:
    """Read a task's training or test images, in a fixed order, labelled by class name.

    Images of unknown classes are skipped.

    Raises:
        CarftError: if torchvision cannot read the data.
    """
    for problem in benchmarks.data_dir_problems(data_dir):
        raise CarftError(problem)
    try:
        named_samples = _read_named_samples(task, Path(data_dir), train)
    except Exception as error:  # any type, if the layout is not torchvision's
        reason = brief(error)
        if isinstance(error, KeyError):  # SUN397, FGVCAircraft: a class is not in their lists
            reason = f"its lists have no entry {error}"
        raise CarftError(
            f"{task.name} cannot be read below {data_dir} ({reason}); {task.hint}"
        ) from error

    labels = {normalise_name(name): label for label, name in enumerate(task.class_names)}
    names = dict.fromkeys(name for _, name in named_samples)
    unknown_classes = [name for name in names if normalise_name(name) not in labels]
    samples = [
        (source, labels[normalise_name(name)])
        for source, name in named_samples
        if normalise_name(name) in labels
    ]
    if task.drawn:
        samples = _draw_split(task, sorted(samples, key=lambda sample: str(sample[0])), train)

    classes = [name.replace("/", "_") for name in task.class_names]
    return ImageDataset(samples, classes, unknown_classes=unknown_classes)


def _read_named_samples(task: Task, data_dir: Path, train: bool) -> list[tuple[Any, str]]:
    """Read a task's training or test images, as files or pixels, with their class names.

    Raises:
        Exception: FileNotFoundError if the folder is missing, or any error of torchvision's.
    """
    folder = data_dir / task.folder
    if not folder.is_dir():  # some of torchvision's classes would create it
        raise FileNotFoundError(f"there is no folder {folder}")
    class_folders = folder / task.class_folders
    if task.class_folders and class_folders.is_dir():
        return _list_class_folders(class_folders)

    samples: list[tuple[Any, str]] = []
    for part in task.parts[0 if train else 1]:
        samples += _named_samples(task, _open_dataset(task, data_dir, part))
    return samples


def class_problems(task: Task, split: str, images: ImageDataset) -> list[str]:
    """Return sentences about classes without images in the split, and about unknown classes."""
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
            f"{quote_names(images.unknown_classes)}; they are skipped. Move them out, or restore "
            "the names"
        )
    return problems


def verify(name: str, data_dir: Path | None, decode: bool = False) -> verification.DataReport:
    """Compare the counts of a task's two splits with the published counts.

    Args:
        name: name of the task.
        data_dir: folder of the datasets' folders.
        decode: decode every image that is a file.

    Raises:
        CarftError: if torchvision cannot read the data.
    """
    task = TASKS[name]
    if data_dir is None:
        raise CarftError(f"{name} needs --data_dir, the folder that contains {task.folder!r}")

    splits = [read_split(task, data_dir, train) for train in (True, False)]
    report = replace(make_report(task, data_dir, splits), decoded=decode)
    sources = [source for split in splits for source, _ in split.samples]
    files = [source for source in sources if not isinstance(source, np.ndarray)]
    return verification.add_decoding_faults(
        report, [os.path.relpath(file, report.root) for file in files]
    )


def make_report(
    task: Task, data_dir: str | Path, splits: Iterable[ImageDataset]
) -> verification.DataReport:
    """Report on a task's training split, or on both splits, without decoding images."""
    counts: dict[str, dict[str, int]] = {}
    problems: list[str] = []
    differences: list[str] = []
    for name, expected, images in zip(("train", "test"), task.images, splits):
        label_counts = Counter(label for _, label in images.samples)
        counts[name] = {
            class_name: label_counts[label] for label, class_name in enumerate(images.classes)
        }
        if name == "train" or not task.drawn:  # a draw can leave no test image of a small class
            problems += class_problems(task, name, images)
        if len(images) != expected:
            differences.append(f"{name} has {len(images):,} images, expected {expected:,}")

    return verification.DataReport(
        name=task.name,
        root=Path(data_dir, task.folder),
        counts=counts,
        problems=problems,
        differences=differences,
        notes=(),
        edition=None if problems or differences else task.split,
    )


def download(name: str, data_dir: Path) -> verification.DataReport:
    """Download a task with torchvision and verify it; raise CarftError if that fails."""
    task = TASKS[name]
    if task.by_hand:
        raise CarftError(f"{task.name}: {task.hint} (in {data_dir / task.folder})")

    leftovers = data_dir / task.folder / "__MACOSX"  # in Caltech101's archive
    had_leftovers = leftovers.exists()
    print(f"{task.name}: downloading to {data_dir / task.folder}", file=sys.stderr)
    try:
        with remove_empty_folders_on_error(data_dir / task.folder):
            for part in (*task.parts[0], *task.parts[1]):
                with_time_limit(
                    functools.partial(_open_dataset, task, data_dir, part, download=True)
                )
        if not had_leftovers:
            shutil.rmtree(leftovers, ignore_errors=True)
    except Exception as error:  # errors of sockets, archives and the disk
        raise CarftError(
            f"torchvision could not download {task.name} to {data_dir} ({brief(error)}); rerun the "
            "command, or put the archives there by hand"
        ) from error
    return verify(name, data_dir)


def _open_dataset(task: Task, data_dir: Path, part: Part, download: bool = False) -> Any:
    """Open torchvision's dataset of a part of a task's split."""
    from torchvision import datasets

    options = {"download": True} if download else {}
    return getattr(datasets, task.name)(str(data_dir), **part, **options)


def _list_class_folders(root: Path) -> list[tuple[Path, str]]:
    """List files with their class names; not by torchvision, which rejects empty class folders."""
    files = map(Path, listing.list_classes(root).images)
    return [(root / file, file.parts[0]) for file in files if file.parts[0] != BACKGROUND]


def _named_samples(task: Task, dataset: Any) -> list[tuple[Any, str]]:
    """Return files or pixels with their class names, from torchvision's dataset."""
    samples = _numbered_samples(dataset)
    if task.labels == "files":
        # If a class is missing, torchvision's labels have a gap, but its list of names does not.
        return [(file, Path(file).stem.rpartition("_")[0]) for file, _ in samples]

    # Some datasets have only numbers.
    names = task.class_names if task.labels == "numbers" else dataset.classes
    numbers = range(len(names))
    return [
        (source, names[label] if label in numbers else f"number {label}")
        for source, label in samples
    ]


def _numbered_samples(dataset: Any) -> Iterable[tuple[Any, int]]:
    """Return files or pixels with labels, from the attributes of torchvision's dataset."""
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
    """Draw the split's images of each class, with a fixed seed, class by class."""
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
