"""Test sets, suites, and the search for a copy of a test set; does not import torch."""

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
    """A copy of a test set on the disk."""

    root: Path | None  # its folder, if it exists
    samples: Sequence[tuple[Any, int]]  # a path or an array (H, W, 3), uint8, and its label
    problems: Sequence[str] = ()  # sentences; empty if the copy is complete


@dataclass(frozen=True)
class TestSet:
    """A test set, whose classes can differ from the model's."""

    __test__ = False  # otherwise pytest collects the class

    name: str
    classes: tuple[str, ...]  # in label order
    groups: tuple[tuple[int, ...], ...]  # labels of the suite's classes that count as each class
    find: Callable[[Path], TestSetCopy]  # finds a copy below a data folder; can raise CarftError
    is_shifted: bool = True  # included in the mean of the shifts, unless it has a group
    border: int = 0  # pixels to cut off each side of each image
    reports_mean_per_class: bool = False  # papers report the mean of the classes' accuracies
    group: str = ""  # name of a group of sets with a separate mean
    is_resized_by_pillow: bool = False  # for the embedded datasets; otherwise torch resizes


@dataclass(frozen=True)
class Suite:
    """Test sets for models with the same classes."""

    name: str
    classes: tuple[str, ...]  # names recorded by runs, in label order
    sets: tuple[TestSet, ...]
    contexts: str = "imagenet"  # templates of zero-shot CLIP, a value of the hparam
    excluded: str = ""  # the set that a second mean excludes, if any
    # CLIP model -> set -> published zero-shot accuracy in percent.
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    source: str = ""  # of the published accuracies

    def means(self, accuracies: Mapping[str, float | None]) -> dict[str, float | None]:
        """Return the means over the shifted sets, and over each group, by record key.

        Args:
            accuracies: accuracies by set; a mean is None if an accuracy is missing.
        """
        return {key: _complete_mean(accuracies, names) for key, names in self.names_by_mean.items()}

    @property
    def names_by_mean(self) -> dict[str, list[str]]:
        """Names of the sets that each of the `means` covers, by record key."""
        shifted = self._shifted_names
        names_by_key = {"mean": shifted}
        if self.excluded:
            remaining = [name for name in shifted if name != self.excluded]
            names_by_key["mean_without_objectnet"] = remaining
        for group in self.groups:
            names_by_key[_mean_key(group)] = [s.name for s in self.sets if s.group == group]
        return names_by_key

    def without(self, names: Collection[str]) -> Suite:
        """Return the suite without some sets, which its means then exclude."""
        return replace(
            self, sets=tuple(test_set for test_set in self.sets if test_set.name not in names)
        )

    @property
    def groups(self) -> list[str]:
        """Groups of sets with a separate mean, in order."""
        return list(dict.fromkeys(test_set.group for test_set in self.sets if test_set.group))

    @property
    def in_distribution(self) -> str:
        """Name of the in-distribution set, or "" if there is no such set."""
        return next((test_set.name for test_set in self.sets if not test_set.is_shifted), "")

    @property
    def mean_titles(self) -> dict[str, str]:
        """Titles of the `means`, by record key."""
        titles = {}
        if self._shifted_names:
            titles["mean"] = "Mean of the shifts"
        if self.excluded:
            titles["mean_without_objectnet"] = f"Mean without {self.excluded}"
        return titles | {_mean_key(group): f"Mean, {group}" for group in self.groups}

    @property
    def _shifted_names(self) -> list[str]:
        """Names of the shifted sets without a group."""
        return [
            test_set.name for test_set in self.sets if test_set.is_shifted and not test_set.group
        ]


def _mean_key(group: str) -> str:
    """Return the record key of a group's mean, such as "mean_never_seen"."""
    return f"mean_{group.replace(' ', '_')}"


def _complete_mean(accuracies: Mapping[str, float | None], names: Sequence[str]) -> float | None:
    """Return the mean over the sets ``names``, or None if there are no sets or one is missing."""
    values = []
    for name in names:
        accuracy = accuracies.get(name)
        if accuracy is None:
            return None
        values.append(accuracy)
    return float(np.mean(values)) if values else None


def no_further_problems(root: Path) -> list[str]:
    """Return no problems: the default of `Folders.find_further_problems`."""
    return []


@dataclass(frozen=True)
class Folders:
    """A search for images in class folders, by the folders' names and never by their order."""

    places: tuple[str, ...]  # below the data folder; the first with a class folder is used
    labels: dict[str, int]  # by name of the class folder
    image_count: int  # of a complete copy
    images_per_class: int | None = None  # of a complete copy, if known
    has_further_folders: bool = False  # a complete copy has folders of other classes, not read
    find_further_problems: Callable[[Path], list[str]] = no_further_problems
    unsorted_hint: str = SORT_BY_CLASS  # advice about images that are not in class folders

    def __call__(self, data_dir: Path) -> TestSetCopy:
        """Find the copy below ``data_dir``, without opening its images.

        Raises:
            CarftError: if a folder or a file cannot be read.
        """
        try:
            root = self._find_root(data_dir)
            if root is None:
                expected = " or ".join(self.places)
                return TestSetCopy(None, (), [f"not found; expected {expected} in {data_dir}"])

            unsorted_count = 0
            if not self.labels.keys() & {*os.listdir(root)}:
                unsorted_count = listing.count_loose_images(root)
            if unsorted_count:
                problem = f"{root} has {unsorted_count:,} images and no class folder"
                return TestSetCopy(root, (), [f"{problem}; {self.unsorted_hint}"])

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
        """Return sentences about unexpected class folders and numbers of images."""
        # The first name of each label.
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
        """Return the first place with a class folder, or the first that is a folder, or None.

        A folder of unsorted images can be next to the sorted one.

        Raises:
            OSError: if there is no class folder, and a place cannot be read.
        """
        folders: list[Path] = []
        errors: list[OSError] = []
        for place in self.places:
            path = data_dir / place
            try:
                # With the dot, because a folder that can be listed is not always searchable.
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
    """Return the first folder of a relative path."""
    return path.partition("/")[0]
