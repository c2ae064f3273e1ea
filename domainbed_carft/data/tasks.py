"""Eleven data sets of CLIP's paper, in torchvision's own folders: a split to train, one to test.

A picture's label comes from the name of its class: torchvision counts the class folders or the
entries of a list, so that one more or one fewer shifts all later labels.

Caltech101, SUN397 and EuroSAT have no official splits there: theirs are drawn here, as many
pictures of each class as CLIP's own splits have, and told as "own split".
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from domainbed_carft.data import benchmarks, listing, picture_files
from domainbed_carft.data import verify as verifying
from domainbed_carft.data.comparison import normalised_name, quoted_names
from domainbed_carft.data.download import removing_empty_folders
from domainbed_carft.errors import CarftError, brief

Part = dict[str, Any]  # keyword arguments of torchvision's class

BACKGROUND = "BACKGROUND_Google"  # a folder of Caltech101 that is no class


@dataclass(frozen=True)
class Task:
    """One data set, called as torchvision's class; facts are in ``assets/suites/tasks.json``."""

    name: str
    words: str  # the shipped lists of class names, in torchvision's label order, and of templates
    folder: str  # below the data folder, as torchvision has it
    classes: int
    pictures: Sequence[int]  # the published numbers of training and test pictures
    zero_shot: Mapping[str, float]  # of CLIPs by name, in percent
    class_folders: str = ""  # below ``folder``, where the data set is nothing but class folders
    labels: str = "names"  # or "files" or "numbers": what names a picture's class elsewhere
    contexts: str = ""  # another list of templates, where the only one would make the KL zero
    per_class: bool = False  # whether CLIP's paper reports the mean accuracy of the classes
    parts: Sequence[Sequence[Part]] = (({},), ({},))  # what makes up training and test set
    drawn: Sequence[int | None] | None = None  # or how many of each class, None for all others
    by_hand: str = ""

    @property
    def class_names(self) -> Sequence[str]:
        """The data set's own names of its classes, in the order of the labels."""
        return benchmarks.class_folders(self.name)

    @property
    def split(self) -> str:
        """Where its splits are from."""
        return "own split" if self.drawn else "official split"

    @property
    def remedy(self) -> str:
        """What to do where the data is missing, after "; "."""
        if self.by_hand:
            return f"torchvision can download it no more: {self.by_hand}"
        return f"run `carft data download {self.name} --data_dir` with that folder"


TASKS = {facts["name"]: Task(**facts) for facts in benchmarks.task_facts()["tasks"]}
ZERO_SHOT_SOURCE: str = benchmarks.task_facts()["zero_shot_source"]


class PictureDataset:
    """A map-style data set of (picture, label): in RGB, or what ``transform`` makes of that.

    ``samples``: a picture's file, or its pixels (H, W, 3) in bytes, and its label; ``classes``: the
    labels' names; ``root``: the split's name, as a folder's would be; ``unknown_classes``: the
    names of other classes in the data, whose pictures are left out.
    """

    root = "test"

    def __init__(
        self, samples: Sequence[tuple[Any, int]], classes: Sequence[str],
        transform: Callable[[Any], Any] | None = None, unknown_classes: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.samples, self.classes, self.transform = samples, list(classes), transform
        self.unknown_classes = unknown_classes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        source, label = self.samples[index]
        if isinstance(source, np.ndarray):
            picture = Image.fromarray(source)
        else:
            picture = picture_files.read_picture(picture_files.open_picture, source)
        return self.transform(picture) if self.transform else picture, label


def read_split(task: Task, data_dir: str | Path, train: bool) -> PictureDataset:
    """Its training or its test pictures, always in the same order, labelled by class name.

    Pictures of classes that the task does not have are left out. Raises CarftError without data
    that torchvision can read.
    """
    for problem in benchmarks.missing_data_dir(data_dir):
        raise CarftError(problem)
    place = Path(data_dir, task.folder)
    named: list[tuple[Any, str]] = []
    try:
        if not place.is_dir():  # else torchvision makes it, for one of them
            raise FileNotFoundError(f"there is no folder {place}")
        class_folders = place / task.class_folders
        if task.class_folders and class_folders.is_dir():
            named += _samples_in_folders(class_folders)
        else:
            for part in task.parts[0 if train else 1]:
                named += _named_samples(task, _made(task, data_dir, part))
    except Exception as error:  # what torchvision makes of another layout: any type
        # For SUN397 and FGVCAircraft: a class that the data set's own list lacks.
        is_unlisted = isinstance(error, KeyError)
        reason = f"its lists have no entry {error}" if is_unlisted else brief(error)
        remedy = "pip install scipy" if "scipy" in str(error).lower() else task.remedy
        raise CarftError(
            f"{task.name} cannot be read below {data_dir} ({reason}); {remedy}"
        ) from error

    labels = {normalised_name(name): label for label, name in enumerate(task.class_names)}
    label_of = {
        name: labels.get(normalised_name(name)) for name in dict.fromkeys(n for _, n in named)
    }
    unknown_classes = [name for name, label in label_of.items() if label is None]
    samples = [(source, y) for source, name in named if (y := label_of[name]) is not None]
    if task.drawn:
        samples = _drawn(task, sorted(samples, key=lambda sample: str(sample[0])), train)

    names = [name.replace("/", "_") for name in task.class_names]
    return PictureDataset(samples, names, unknown_classes=unknown_classes)


def class_problems(task: Task, split: str, pictures: PictureDataset) -> list[str]:
    """A sentence if classes of the task have no picture in the split, and one if others have."""
    problems = []
    present = {label for _, label in pictures.samples}
    missing = [name for label, name in enumerate(task.class_names) if label not in present]
    if missing:
        problems.append(
            f"{split} has no picture of {len(missing):,} of the {len(task.class_names):,} classes: "
            f"{quoted_names(missing)}; restore their pictures, or the lists that name them"
        )
    if pictures.unknown_classes:
        problems.append(
            f"{split} has pictures of classes that {task.name} does not have: "
            f"{quoted_names(pictures.unknown_classes)}; they are not read. Move them out, or "
            "restore the names"
        )
    return problems


def verify(name: str, data_dir: Path | None, decode: bool = False) -> verifying.Report:
    """The numbers of both splits against the published ones. Raises CarftError."""
    if data_dir is None:
        raise CarftError(f"{name} needs --data_dir, the folder of {TASKS[name].folder}")
    splits = [read_split(TASKS[name], data_dir, train) for train in (True, False)]
    found = replace(report_on(TASKS[name], data_dir, splits), decoded=decode)
    sources = [source for split in splits for source, _ in split.samples]
    files = [source for source in sources if not isinstance(source, np.ndarray)]
    return verifying.with_decoding_faults(
        found, [os.path.relpath(file, found.root) for file in files]
    )


def report_on(
    task: Task, data_dir: str | Path, splits: Iterable[PictureDataset]
) -> verifying.Report:
    """The same of what was read: the training set, or that and the test set."""
    counts: dict[str, dict[str, int]] = {}
    problems: list[str] = []
    differences: list[str] = []
    for name, expected, pictures in zip(("train", "test"), task.pictures, splits):
        of_label = Counter(label for _, label in pictures.samples)
        counts[name] = {known: of_label[label] for label, known in enumerate(pictures.classes)}
        if name == "train" or not task.drawn:  # a draw leaves nothing to test of a small class
            problems += class_problems(task, name, pictures)
        if len(pictures) != expected:
            differences.append(f"{name} has {len(pictures):,} pictures, expected {expected:,}")

    edition = None if problems or differences else task.split
    root = Path(data_dir, task.folder)
    return verifying.Report(task.name, root, counts, problems, differences, (), edition)


def download(name: str, data_dir: Path) -> verifying.Report:
    """Let torchvision download a task, where it can, and count. Raises CarftError where not."""
    task = TASKS[name]
    if task.by_hand:
        raise CarftError(f"{task.name}: {task.remedy} (in {data_dir / task.folder})")
    leftovers = data_dir / task.folder / "__MACOSX"  # in Caltech101's archive
    were_there = leftovers.exists()
    try:
        with removing_empty_folders(data_dir / task.folder):
            for part in (*task.parts[0], *task.parts[1]):
                _made(task, data_dir, part, download=True)
        if not were_there:
            shutil.rmtree(leftovers, ignore_errors=True)
    except Exception as error:  # sockets', archives', the disk's
        raise CarftError(
            f"torchvision could not download {task.name} to {data_dir} ({brief(error)}); rerun the "
            "command, or put its archives there by hand"
        ) from error
    return verify(name, data_dir)


def _made(task: Task, data_dir: str | Path, part: Part, **more: Any) -> Any:
    from torchvision import datasets

    return getattr(datasets, task.name)(str(data_dir), **part, **more)


def _samples_in_folders(root: Path) -> list[tuple[Path, str]]:
    """Files below the class folders with the names of these; torchvision refuses empty folders."""
    files = map(Path, listing.list_classes(root).pictures)
    return [(root / file, file.parts[0]) for file in files if file.parts[0] != BACKGROUND]


def _named_samples(task: Task, found: Any) -> list[tuple[Any, str]]:
    """Files or pixels with the names of their classes, from what torchvision's class has read."""
    samples = _samples(found)
    if task.labels == "files":
        # torchvision's list of names has no gap where a class is missing, but its labels have.
        return [(file, Path(file).stem.rpartition("_")[0]) for file, _ in samples]
    # Some data sets have numbers only.
    names = task.class_names if task.labels == "numbers" else found.classes
    numbers = range(len(names))
    return [(source, names[y] if y in numbers else f"number {y}") for source, y in samples]


def _samples(found: Any) -> Iterable[tuple[Any, int]]:
    """Files or pixels with labels, from what each of torchvision's classes keeps."""
    if hasattr(found, "data"):  # CIFAR
        return zip(found.data, found.targets)
    listed = getattr(found, "samples", None) or getattr(found, "_samples", None)
    files = getattr(found, "_image_files", None) or getattr(found, "_images", None)
    return [(file, int(y)) for file, y in listed or zip(files or (), found._labels)]


def _drawn(task: Task, samples: Sequence[tuple[Any, int]], train: bool) -> list[tuple[Any, int]]:
    """The pictures of each class that a fixed draw gives to the split, class by class."""
    trained, tested = task.drawn or ()
    generator = np.random.RandomState(0)
    labels = np.array([label for _, label in samples])
    found = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        order = generator.permutation(len(own))
        chosen = order[:trained] if train else order[trained:][:tested]
        found += [samples[place] for place in own[np.sort(chosen)]]
    return found
