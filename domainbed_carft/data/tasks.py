"""Eleven data sets of CLIP's paper, in torchvision's own folders: a split to train, one to test.

Caltech101, SUN397 and EuroSAT have no official splits there: theirs are drawn here, as many
pictures of each class as CLIP's own splits have, and told as "own split".
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from domainbed_carft.data import listing
from domainbed_carft.data import verify as verifying
from domainbed_carft.data.benchmarks import ASSETS
from domainbed_carft.errors import CarftError, brief

Part = dict[str, Any]  # keyword arguments of torchvision's class


@dataclass(frozen=True)
class Task:
    """One data set, called as torchvision's class; facts are in ``assets/suites/tasks.json``."""

    name: str
    words: str  # the shipped lists of class names, in torchvision's label order, and of templates
    folder: str  # below the data folder, as torchvision has it
    classes: int
    pictures: Sequence[int]  # the published numbers of training and test pictures
    zero_shot: Mapping[str, float]  # of CLIPs by name, in percent
    contexts: str = ""  # another list of templates, where the only one would make the KL zero
    per_class: bool = False  # whether CLIP's paper reports the mean accuracy of the classes
    parts: Sequence[Sequence[Part]] = (({},), ({},))  # what makes up training and test set
    drawn: Sequence[int | None] | None = None  # or how many of each class, None for all others
    by_hand: str = ""

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


_FACTS = json.loads((ASSETS / "suites" / "tasks.json").read_text(encoding="utf-8"))
TASKS = {facts["name"]: Task(**facts) for facts in _FACTS["tasks"]}
ZERO_SHOT_SOURCE: str = _FACTS["zero_shot_source"]


class Pictures:
    """A map-style data set of (picture, label): in RGB, or what ``transform`` makes of that.

    ``samples``: a picture's file, or its pixels (H, W, 3) in bytes, and its label; ``classes``: the
    labels' names; ``root``: the split's name, as a folder's would be.
    """

    root = "test"

    def __init__(
        self, samples: Sequence[tuple[Any, int]], classes: Sequence[str],
        transform: Callable[[Any], Any] | None = None,
    ) -> None:  # fmt: skip
        self.samples, self.classes, self.transform = samples, list(classes), transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        source, label = self.samples[index]
        if isinstance(source, np.ndarray):
            picture = Image.fromarray(source)
        else:
            picture = listing.opened(listing.open_picture, source)
        return self.transform(picture) if self.transform else picture, label


def read(task: Task, data_dir: str | Path, train: bool) -> Pictures:
    """Its training or its test pictures, always in the same order. Raises CarftError without."""
    place = Path(data_dir, task.folder)
    try:
        if not place.is_dir():  # else torchvision makes it, for one of them
            raise FileNotFoundError(f"there is no folder {place}")
        found = [_made(task, data_dir, part) for part in task.parts[0 if train else 1]]
        samples = [sample for one in found for sample in _samples(one)]
        told = [getattr(found[0], name, None) for name in ("classes", "categories")]
        classes = told[0] or told[1] or [*map(str, range(task.classes))]  # Flowers102 of 2023
    except Exception as error:  # what torchvision makes of another layout: any type
        remedy = "pip install scipy" if "scipy" in str(error).lower() else task.remedy
        raise CarftError(
            f"{task.name} cannot be read below {data_dir} ({brief(error)}); {remedy}"
        ) from error
    if task.drawn:
        samples = _drawn(task, sorted(samples, key=lambda sample: str(sample[0])), train)
    return Pictures(samples, [name.replace("/", "_") for name in classes])


def verify(name: str, data_dir: Path | None, decode: bool = False) -> verifying.Report:
    """The numbers of both splits against the published ones. Raises CarftError as ``read``."""
    if data_dir is None:
        raise CarftError(f"{name} needs --data_dir, the folder of {TASKS[name].folder}")
    splits = [read(TASKS[name], data_dir, train) for train in (True, False)]
    found = replace(report(TASKS[name], data_dir, splits), decoded=decode)
    sources = [source for split in splits for source, _ in split.samples]
    files = [source for source in sources if not isinstance(source, np.ndarray)]
    return verifying.judged(found, [os.path.relpath(file, found.root) for file in files])


def report(task: Task, data_dir: str | Path, splits: Iterable[Pictures]) -> verifying.Report:
    """The same of what was read: the training set, or that and the test set."""
    counts, differences = {}, []
    for name, expected, split in zip(("train", "test"), task.pictures, splits):
        of_label = Counter(label for _, label in split.samples)
        counts[name] = {known: of_label[label] for label, known in enumerate(split.classes)}
        found, known = (f"{len(split):,}", len(split.classes)), (f"{expected:,}", task.classes)
        if found != known:
            told = "{} has {} pictures of {} classes, expected {} of {}"
            differences.append(told.format(name, *found, *known))
    edition, root = None if differences else task.split, Path(data_dir, task.folder)
    return verifying.Report(task.name, root, counts, (), differences, (), edition)


def download(name: str, data_dir: Path) -> verifying.Report:
    """Let torchvision download a task, where it can, and count. Raises CarftError where not."""
    task = TASKS[name]
    if task.by_hand:
        raise CarftError(f"{task.name}: {task.remedy} (in {data_dir / task.folder})")
    try:
        for part in (*task.parts[0], *task.parts[1]):
            _made(task, data_dir, part, download=True)
    except Exception as error:  # sockets', archives', the disk's
        raise CarftError(
            f"torchvision could not download {task.name} to {data_dir} ({brief(error)}); rerun the "
            "command, or put its archives there by hand"
        ) from error
    return verify(name, data_dir)


def _made(task: Task, data_dir: str | Path, part: Part, **more: Any) -> Any:
    from torchvision import datasets

    return getattr(datasets, task.name)(str(data_dir), **part, **more)


def _samples(found: Any) -> Iterable[tuple[Any, int]]:
    """Files or pixels with labels, from what each of torchvision's classes keeps."""
    if hasattr(found, "categories"):  # Caltech101, whose own items need scipy
        folders = [Path(found.root, "101_ObjectCategories", name) for name in found.categories]
        return [(folders[y] / f"image_{n:04d}.jpg", y) for n, y in zip(found.index, found.y)]
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
