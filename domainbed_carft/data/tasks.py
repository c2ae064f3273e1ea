"""Eleven data sets of CLIP's paper, in torchvision's own folders: a split to train, one to test.

Official splits where torchvision has them. Caltech101, SUN397 and EuroSAT have none there: theirs
are drawn here, as many pictures of each class as CLIP's own splits have, and told as "own split".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from domainbed_carft.data import listing
from domainbed_carft.data import verify as verifying
from domainbed_carft.errors import CarftError, brief

Part = dict[str, Any]  # keyword arguments of torchvision's class


@dataclass(frozen=True)
class Task:
    """One data set, called as torchvision's class.

    ``words``: the shipped lists of class names, in torchvision's label order, and of templates;
    ``contexts``: another list of templates, where there the only one would make the KL zero.
    ``folder``: below the data folder, as torchvision has it. ``pictures``: the published numbers of
    training and test pictures. ``per_class``: whether CLIP's paper reports the mean accuracy of the
    classes. ``parts``: what makes up training and test set; or ``drawn``, how many pictures of each
    class are drawn for them, None for all others.
    """

    name: str
    words: str
    folder: str
    classes: int
    pictures: tuple[int, int]
    contexts: str = ""
    per_class: bool = False
    parts: tuple[tuple[Part, ...], tuple[Part, ...]] = (({},), ({},))
    drawn: tuple[int, int | None] | None = None
    by_hand: str = ""

    @property
    def split(self) -> str:
        """Where its splits are from, in a word for tables."""
        return "own split" if self.drawn else "official split"

    @property
    def remedy(self) -> str:
        """What to do where the data is missing, after "; "."""
        if self.by_hand:
            return f"torchvision can download it no more: {self.by_hand}"
        return f"run `carft data download {self.name} --data_dir` with that folder"


def _split(train: str, test: str, **more: Any) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    one, other = (tuple({"split": s, **more} for s in names.split()) for names in (train, test))
    return one, other


_CIFAR = (({"train": True},), ({"train": False},))

# Names, folders and arguments: torchvision 0.28. Sizes: its documentation and CLIP's paper, whose
# table 9 has the metrics.
TASKS = {
    task.name: task
    for task in (
        Task("CIFAR10", "cifar10", "cifar-10-batches-py", 10, (50000, 10000), parts=_CIFAR),
        Task("CIFAR100", "cifar100", "cifar-100-python", 100, (50000, 10000), parts=_CIFAR),
        Task(
            "Caltech101", "caltech101", "caltech101", 101, (3030, 5647),
            per_class=True, drawn=(30, None),
        ),
        Task(
            "OxfordIIITPet", "pets", "oxford-iiit-pet", 37, (3680, 3669),
            contexts="imagenet", per_class=True, parts=_split("trainval", "test"),
        ),
        Task(
            "Flowers102", "flowers", "flowers-102", 102, (2040, 6149),
            contexts="imagenet", per_class=True, parts=_split("train val", "test"),
        ),
        Task(
            "Food101", "food101", "food-101", 101, (75750, 25250),
            contexts="imagenet", parts=_split("train", "test"),
        ),
        Task(
            "StanfordCars", "cars", "stanford_cars", 196, (8144, 8041),
            parts=_split("train", "test"),
            by_hand="put cars_train, cars_test, devkit and cars_test_annos_withlabels.mat there",
        ),
        Task(
            "FGVCAircraft", "aircraft", "fgvc-aircraft-2013b", 100, (6667, 3333),
            per_class=True, parts=_split("trainval", "test", annotation_level="variant"),
        ),
        Task("SUN397", "sun397", "SUN397", 397, (19850, 19850), drawn=(50, 50)),
        Task(
            "DTD", "dtd", "dtd", 47, (3760, 1880), parts=_split("train val", "test", partition=1)
        ),
        Task("EuroSAT", "eurosat", "eurosat", 10, (10000, 5000), drawn=(1000, 500)),
    )
}  # fmt: skip


class Pictures:
    """A map-style data set of (picture, label): in RGB, or what ``transform`` makes of that.

    ``samples``: a picture's file, or its pixels (H, W, 3) in bytes, and its label; ``classes``: the
    names that torchvision gives the labels. ``root`` is the split's name, as a folder's would be.
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
        in_memory = isinstance(source, np.ndarray)
        picture = Image.fromarray(source) if in_memory else listing.open_picture(source)
        return self.transform(picture) if self.transform else picture, label


def read(task: Task, data_dir: str | Path, train: bool) -> Pictures:
    """The training or the test pictures of a task, in an order that does not depend on the disk.

    Raises CarftError where they are missing or are not as torchvision wants them.
    """
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
    files = [source for split in splits for source, _ in split.samples]
    return verifying.judged(found, [str(f) for f in files if not isinstance(f, np.ndarray)])


def report(task: Task, data_dir: str | Path, splits: Iterable[Pictures]) -> verifying.Report:
    """The same of what was read: the training set, or that and the test set."""
    counts, differences = {}, []
    for name, expected, split in zip(("train", "test"), task.pictures, splits):
        of_label = Counter(label for _, label in split.samples)
        counts[name] = {known: of_label[label] for label, known in enumerate(split.classes)}
        if len(split) != expected or len(split.classes) != task.classes:
            differences.append(
                f"{name} has {len(split):,} pictures of {len(split.classes)} classes, expected "
                f"{expected:,} of {task.classes}"
            )
    edition = None if differences else task.split
    root = Path(data_dir, task.folder)
    return verifying.Report(task.name, root, counts, (), differences, (), edition)


def download(name: str, data_dir: Path) -> verifying.Report:
    """Let torchvision download a task, where it can, and count. Raises CarftError where not."""
    task = TASKS[name]
    if task.by_hand:
        raise CarftError(f"{task.name}: {task.remedy} (in {data_dir / task.folder})")
    try:
        for part in task.parts[0] + task.parts[1]:
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
    assert task.drawn is not None
    trained, tested = task.drawn
    generator = np.random.RandomState(0)
    by_label: dict[int, list[tuple[Any, int]]] = {}
    for sample in samples:
        by_label.setdefault(sample[1], []).append(sample)
    found = []
    for label in sorted(by_label):
        own = by_label[label]
        order = generator.permutation(len(own)).tolist()
        end = len(own) if tested is None else trained + tested
        chosen = order[:trained] if train else order[trained:end]
        found += [own[place] for place in sorted(chosen)]
    return found
