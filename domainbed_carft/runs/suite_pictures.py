"""The pictures of a suite's test sets: those below a data folder, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from domainbed_carft.data import picture_files
from domainbed_carft.data.benchmarks import missing_data_dir
from domainbed_carft.errors import CarftError, UnreadableError
from domainbed_carft.pictures import loading, stages
from domainbed_carft.pictures.plan import PicturePlan
from domainbed_carft.suites.test_sets import Suite, TestSet, TestSetCopy


class LocatedSet(NamedTuple):
    """A test set of a suite and the copy of it below the data folder."""

    test_set: TestSet
    copy: TestSetCopy


def locate_sets(suite: Suite, data_dir: str | None) -> list[LocatedSet]:
    """Each test set of the suite with its copy below ``data_dir``, or below the working folder.

    Raises CarftError if there is no picture of any set, UnreadableError if that is since a folder
    cannot be read.
    """
    folder = Path(data_dir or ".")
    located = [LocatedSet(test_set, test_set.find(folder)) for test_set in suite.sets]
    if any(copy.samples for _, copy in located):
        return located

    for problem in missing_data_dir(folder):  # said once, and not of each set
        raise CarftError(problem)

    problems = {test_set.name: copy.problems for test_set, copy in located}
    if any(copy.is_unreadable for _, copy in located):
        raise unreadable_suite(suite, problems)
    raise CarftError(
        f"no test set of the suite {suite.name} is in --data_dir {folder}: {_by_set(problems)}"
    )


def unreadable_suite(suite: Suite, problems: Mapping[str, Sequence[str]]) -> UnreadableError:
    """The error for a suite without any set that can be read; ``problems``: sentences by set."""
    return UnreadableError(
        f"no test set of the suite {suite.name} can be read: {_by_set(problems)}"
    )


def _by_set(problems: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{name}: {'; '.join(sentences)}" for name, sentences in problems.items())


@dataclass(frozen=True)
class TestSetPictures(Dataset[Any]):
    """Squares (S, S, 3), uint8, before they are normalised, and labels.

    ``samples``: paths or arrays (H, W, 3) with their labels. ``border`` and
    ``is_resized_by_pillow``: as of `TestSet`. ``plan``: how a picture becomes a square.
    """

    __test__ = False  # no test of pytest's

    samples: Sequence[tuple[Any, int]]
    border: int
    plan: PicturePlan
    is_resized_by_pillow: bool = False

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        sample, label = self.samples[position]
        if not isinstance(sample, str):
            return self._square(torch.as_tensor(sample)), label

        with picture_files.refuse_truncated_files():
            return picture_files.read_picture(self._square_of_file, sample), label

    def _square_of_file(self, path: str) -> Tensor:
        return self._square(loading.decode(path))

    def _square(self, pixels: Tensor) -> Tensor:
        """A picture (H, W, 3) without its border, cropped and resized by the plan."""
        height, width = pixels.shape[:2]
        if min(height, width) <= 2 * self.border:
            raise CarftError(
                f"of its {width} x {height} pixels nothing is left without the border of "
                f"{self.border} pixels on each side"
            )

        inside = pixels[self.border : height - self.border, self.border : width - self.border]
        if self.is_resized_by_pillow:
            return stages.resized_by_pillow(self.plan, inside)
        return stages.first_stage(self.plan, inside)[0]
