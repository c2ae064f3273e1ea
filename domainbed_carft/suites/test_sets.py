"""What a test set and a suite of them are, and what is found of one on the disk. No torch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from domainbed_carft.data import listing
from domainbed_carft.data.comparison import listed
from domainbed_carft.errors import CarftError

SORT_BY_CLASS = "sort them into a folder for each class"


@dataclass(frozen=True)
class Found:
    """A copy of a test set.

    ``root``: its folder, None where there is none. ``samples``: pictures with their labels, each a
    path or an array (H, W, 3) of uint8. ``problems``: sentences; a copy with one is not complete.
    ``is_unreadable``: whether one of them is a folder or a file that cannot be read.
    """

    root: Path | None
    samples: Sequence[tuple[Any, int]]
    problems: Sequence[str] = ()
    is_unreadable: bool = False


@dataclass(frozen=True)
class TestSet:
    """Pictures of classes of their own, and which of the model's classes count as each.

    ``classes`` are in label order; ``groups[j]`` are the model's classes that count as class j, by
    their places in the suite's. ``find(data_dir)`` gives the pictures. ``shifted``: whether it
    counts in the mean of the shifts. ``border``: pixels to cut off each side of each picture.
    ``per_class``: whether the mean of the classes' accuracies is what others report of it.
    ``group``: the name of a group with a mean of its own, in which it counts instead.
    """

    __test__ = False  # no test of pytest's

    name: str
    classes: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    find: Callable[[Path], Found]
    shifted: bool = True
    border: int = 0
    per_class: bool = False
    group: str = ""


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
        """The mean of the shifts, without ``left_out``, and of each group, by the record's key.

        A mean is None where one of its sets is missing.
        """
        shifts = [one.name for one in self.sets if one.shifted and not one.group]
        without = [name for name in shifts if name != self.left_out] if self.left_out else []
        names_of = {"mean": shifts, "mean_without_objectnet": without}
        for group in self.groups:
            names_of[_mean_key(group)] = [one.name for one in self.sets if one.group == group]

        found: dict[str, float | None] = {}
        for key, names in names_of.items():
            values = [value for n in names if (value := accuracies.get(n)) is not None]
            whole = len(values) == len(names) > 0
            found[key] = sum(values) / len(values) if whole else None
        return found

    @property
    def groups(self) -> list[str]:
        """The groups of sets that have a mean of their own, in order."""
        return list(dict.fromkeys(one.group for one in self.sets if one.group))

    @property
    def usual(self) -> str:
        """The set in distribution, "" for none."""
        return next((one.name for one in self.sets if not one.shifted), "")

    @property
    def titles(self) -> dict[str, str]:
        """The keys of the `means` that there are -> what these are called."""
        found = {}
        if any(one.shifted and not one.group for one in self.sets):
            found["mean"] = "Mean of the shifts"
        if self.left_out:
            found["mean_without_objectnet"] = f"Mean without {self.left_out}"
        return found | {_mean_key(group): f"Mean, {group}" for group in self.groups}


def _mean_key(group: str) -> str:
    """The key of a group's mean in a record: "mean_never_seen" of "never seen"."""
    return f"mean_{group.replace(' ', '_')}"


def no_further_problems(root: Path) -> list[str]:
    """The check of a test set whose folders and counts say everything."""
    return []


@dataclass(frozen=True)
class Folders:
    """Finds pictures in class folders, by the names of these alone: never by their order.

    ``places`` are the folders to look for below the data folder, of which the first with a class
    folder counts. ``labels``: name of a class folder -> label. ``pictures``: how many a complete
    copy has, and how many of ``each`` class, if known. ``more``: whether a complete copy has
    folders of other classes, which are not read. ``check(root)``: further problems.
    ``unsorted_remedy``: what to do with pictures that are in no class folder.
    """

    places: tuple[str, ...]
    labels: dict[str, int]
    pictures: int
    each: int | None = None
    more: bool = False
    check: Callable[[Path], list[str]] = no_further_problems
    unsorted_remedy: str = SORT_BY_CLASS

    def __call__(self, data_dir: Path) -> Found:
        """Lists the folders; their files are not opened."""
        try:
            root = self._find_root(data_dir)
            if root is None:
                expected = " or ".join(map(str, self.places))
                return Found(None, (), [f"not there; expected {expected} in {data_dir}"])
            is_unsorted = not self.labels.keys() & {*os.listdir(root)}
            loose = listing.loose_pictures(root) if is_unsorted else 0
            if loose:
                problem = f"{root} has {loose:,} pictures and no class folder"
                return Found(root, (), [f"{problem}; {self.unsorted_remedy}"])
            found = listing.of_classes(root, self.labels if self.more else None)
        except OSError as error:
            path = Path(error.filename)
            problem = f"{path} cannot be read ({error.strerror}); check its permissions"
            return Found(None, (), [problem], is_unreadable=True)
        except CarftError as error:
            return Found(None, (), [str(error)], is_unreadable=True)

        (counts,) = found.counts.values()
        samples = [
            (str(root / path), self.labels[name])
            for path in found.pictures
            if (name := path.partition("/")[0]) in self.labels
        ]
        of_label = Counter(label for _, label in samples)
        names = {label: name for name, label in reversed(self.labels.items())}
        problems = found.problems
        if empty := [names[k] for k in sorted(names) if not of_label[k]]:
            problems.append(
                f"no picture of {len(empty):,} of its {len(names):,} classes; expected them in the "
                f"folders {listed(empty)}"
            )
        if strange := [name for name in counts if name not in self.labels]:
            problems.append(f"the folders {listed(strange)} are no classes of it")
        if len(samples) != self.pictures:
            problems.append(f"{len(samples):,} pictures, expected {self.pictures:,}")
        elif self.each and (odd := [names[k] for k in sorted(names) if of_label[k] != self.each]):
            problems.append(f"not {self.each} pictures in the folders {listed(odd)}")
        unreadable = any(path.partition("/")[0] in self.labels for path in found.odd["path"])
        return Found(root, samples, [*problems, *self.check(root)], unreadable)

    def _find_root(self, data_dir: Path) -> Path | None:
        """The first of the places with a class folder, else the first that is a folder, if any.

        A folder of pictures that nobody sorted into classes may lie beside the sorted one. Raises
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
