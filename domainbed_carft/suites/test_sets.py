"""What a test set and a suite of them are, and what is found of one on the disk. No torch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from domainbed_carft.data import listing
from domainbed_carft.data.comparison import quote_names
from domainbed_carft.errors import CarftError

SORT_BY_CLASS = "sort them into a folder for each class"


@dataclass(frozen=True)
class TestSetCopy:
    """A copy of a test set.

    ``root``: its folder, None where there is none. ``samples``: images with their labels, each a
    path or an array (H, W, 3) of uint8. ``problems``: sentences; a copy with one is not complete.
    """

    root: Path | None
    samples: Sequence[tuple[Any, int]]
    problems: Sequence[str] = ()


@dataclass(frozen=True)
class TestSet:
    """Images of classes of their own, and which of the model's classes count as each.

    ``classes`` are in label order; ``groups[j]`` are the model's classes that count as class j, by
    their places in the suite's. ``find(data_dir)`` gives the images, and raises CarftError for a
    folder or a file that cannot be read. ``is_shifted``: whether it
    counts in the mean of the shifts. ``border``: pixels to cut off each side of each image.
    ``reports_mean_per_class``: whether others report the mean of the classes' accuracies.
    ``group``: the name of a group with a mean of its own, in which it counts instead.
    ``is_resized_by_pillow``: whether Pillow resizes the images, as it does those of the embedded
    datasets, and not torch.
    """

    __test__ = False  # no test of pytest's

    name: str
    classes: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    find: Callable[[Path], TestSetCopy]
    is_shifted: bool = True
    border: int = 0
    reports_mean_per_class: bool = False
    group: str = ""
    is_resized_by_pillow: bool = False


@dataclass(frozen=True)
class Suite:
    """Test sets for models of the same ``classes``, names in label order as a run records them.

    ``contexts``: the templates of a CLIP without a run, as the hparam. ``left_out``: the set
    without which a second mean is formed, "" for none. ``published``: CLIP -> set -> zero-shot
    accuracy in percent; ``source`` says where from.
    """

    name: str
    classes: tuple[str, ...]
    sets: tuple[TestSet, ...]
    contexts: str = "imagenet"
    left_out: str = ""
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    source: str = ""

    def means(self, accuracies: Mapping[str, float | None]) -> dict[str, float | None]:
        """The means of the shifted sets, without ``left_out``, and of each group, by record key.

        ``accuracies``: by set. A mean is None unless each of its sets has one.
        """
        shifted = [one.name for one in self.sets if one.is_shifted and not one.group]
        remaining = []
        if self.left_out:
            remaining = [name for name in shifted if name != self.left_out]
        names_by_key = {"mean": shifted, "mean_without_objectnet": remaining}
        for group in self.groups:
            names_by_key[_mean_key(group)] = [s.name for s in self.sets if s.group == group]
        return {key: _complete_mean(accuracies, names) for key, names in names_by_key.items()}

    def without(self, names: Collection[str]) -> Suite:
        """The suite without the sets called ``names``; its means are over the others."""
        return replace(self, sets=tuple(one for one in self.sets if one.name not in names))

    @property
    def groups(self) -> list[str]:
        """The groups of sets that have a mean of their own, in order."""
        return list(dict.fromkeys(test_set.group for test_set in self.sets if test_set.group))

    @property
    def in_distribution(self) -> str:
        """The name of the set in distribution, "" for none."""
        return next((test_set.name for test_set in self.sets if not test_set.is_shifted), "")

    @property
    def mean_titles(self) -> dict[str, str]:
        """The keys of the `means` that the suite has -> what these are called."""
        titles = {}
        if any(one.is_shifted and not one.group for one in self.sets):
            titles["mean"] = "Mean of the shifts"
        if self.left_out:
            titles["mean_without_objectnet"] = f"Mean without {self.left_out}"
        return titles | {_mean_key(group): f"Mean, {group}" for group in self.groups}


def _mean_key(group: str) -> str:
    """The key of a group's mean in a record: "mean_never_seen" of "never seen"."""
    return f"mean_{group.replace(' ', '_')}"


def _complete_mean(accuracies: Mapping[str, float | None], names: Sequence[str]) -> float | None:
    """The mean over the sets called ``names``; None without sets, and where one has no accuracy."""
    values = []
    for name in names:
        accuracy = accuracies.get(name)
        if accuracy is None:
            return None
        values.append(accuracy)
    return float(np.mean(values)) if values else None


def no_further_problems(root: Path) -> list[str]:
    """The check of a test set whose folders and counts say everything."""
    return []


@dataclass(frozen=True)
class Folders:
    """Finds images in class folders, by the names of these alone: never by their order.

    ``places`` are the folders to look for below the data folder, of which the first with a class
    folder counts. ``labels``: name of a class folder -> label. ``image_count``: how many images
    a complete copy has; ``images_per_class``: how many of each class, if known.
    ``has_further_folders``: whether a complete copy has folders of other classes, which are not
    read. ``find_further_problems(root)``: sentences on whatever else is wrong. ``unsorted_remedy``:
    what to do with images that are in no class folder.
    """

    places: tuple[str, ...]
    labels: dict[str, int]
    image_count: int
    images_per_class: int | None = None
    has_further_folders: bool = False
    find_further_problems: Callable[[Path], list[str]] = no_further_problems
    unsorted_remedy: str = SORT_BY_CLASS

    def __call__(self, data_dir: Path) -> TestSetCopy:
        """The copy below ``data_dir``; its folders are listed, its files are not opened.

        Raises CarftError for a folder or a file that cannot be read.
        """
        try:
            root = self._find_root(data_dir)
            if root is None:
                expected = " or ".join(self.places)
                return TestSetCopy(None, (), [f"not there; expected {expected} in {data_dir}"])

            is_unsorted = not self.labels.keys() & {*os.listdir(root)}
            unsorted_count = listing.count_loose_images(root) if is_unsorted else 0
            if unsorted_count:
                problem = f"{root} has {unsorted_count:,} images and no class folder"
                return TestSetCopy(root, (), [f"{problem}; {self.unsorted_remedy}"])

            class_names = self.labels if self.has_further_folders else None
            listed_copy = listing.list_classes(root, class_names)
        except OSError as error:
            path = Path(error.filename)
            raise CarftError(
                f"{path} cannot be read ({error.strerror}); check its permissions"
            ) from error
        if any(_class_folder(path) in self.labels for path in listed_copy.faults["path"]):
            raise CarftError(f"{root}: {'; '.join(listed_copy.problems)}")

        samples = [
            (str(root / path), self.labels[_class_folder(path)])
            for path in listed_copy.images
            if _class_folder(path) in self.labels
        ]
        (counts,) = listed_copy.counts.values()
        problems = [
            *listed_copy.problems,
            *self._folder_problems(counts, Counter(label for _, label in samples)),
            *self.find_further_problems(root),
        ]
        return TestSetCopy(root, samples, problems)

    def _folder_problems(
        self, folder_names: Iterable[str], label_counts: Mapping[int, int]
    ) -> list[str]:
        """Sentences on class folders and numbers of images that are not as expected."""
        # Of the names of one label the first.
        names = {label: name for name, label in reversed(self.labels.items())}
        problems = []

        empty = [names[label] for label in sorted(names) if not label_counts[label]]
        if empty:
            problems.append(
                f"no image of {len(empty):,} of its {len(names):,} classes; expected them in the "
                f"folders {quote_names(empty)}"
            )
        unexpected = [name for name in folder_names if name not in self.labels]
        if unexpected:
            problems.append(f"unexpected class folders: {quote_names(unexpected)}")

        total = sum(label_counts.values())
        if total != self.image_count:
            problems.append(f"{total:,} images, expected {self.image_count:,}")
        elif self.images_per_class:
            expected = self.images_per_class
            uneven = [names[label] for label in sorted(names) if label_counts[label] != expected]
            if uneven:
                problems.append(f"not {expected} images in the folders {quote_names(uneven)}")
        return problems

    def _find_root(self, data_dir: Path) -> Path | None:
        """The first of the places with a class folder, else the first that is a folder, if any.

        A folder of images that nobody sorted into classes may lie beside the sorted one. Raises
        OSError if none has a class folder, and one cannot be read.
        """
        folders: list[Path] = []
        errors: list[OSError] = []
        for place in self.places:
            path = data_dir / place
            try:
                # By the dot: who may list a folder may still not be allowed to look into it.
                names = os.listdir(os.path.join(path, "."))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                errors.append(error)
                continue
            if self.labels.keys() & {*names}:
                return path
            folders.append(path)

        if errors:
            raise errors[0]
        return folders[0] if folders else None


def _class_folder(path: str) -> str:
    """The first folder of a path below the root."""
    return path.partition("/")[0]
