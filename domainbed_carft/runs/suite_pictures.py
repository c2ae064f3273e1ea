"""The pictures of a suite's test sets: those below a data folder, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from domainbed_carft.data import picture_files
from domainbed_carft.data.benchmarks import missing_data_dir
from domainbed_carft.errors import CarftError, UnreadableError
from domainbed_carft.pictures import loading
from domainbed_carft.pictures import plan as planning
from domainbed_carft.runs import splits as data
from domainbed_carft.suites.test_sets import Found, Suite, TestSet

Copies = list[tuple[TestSet, Found]]


def looked_up(suite: Suite, data_dir: str | None) -> Copies:
    """Each set of the suite with what is found of it.

    Raises CarftError if no picture is there, UnreadableError if some folder cannot be read.
    """
    folder = Path(data_dir or ".")
    found = [(one, one.find(folder)) for one in suite.sets]
    if not any(copy.samples for _, copy in found):
        for problem in missing_data_dir(folder):  # said once, and not of each set
            raise CarftError(problem)
        problems = {one.name: copy.problems for one, copy in found}
        if any(copy.is_unreadable for _, copy in found):
            raise nothing_readable(suite, problems)
        where = f"no test set of the suite {suite.name} is in --data_dir {folder}"
        raise CarftError(f"{where}: {_by_set(problems)}")
    return found


def nothing_readable(suite: Suite, problems: Mapping[str, Sequence[str]]) -> UnreadableError:
    """What to raise where no set of the suite has figures; ``problems``: sentences by set."""
    return UnreadableError(
        f"no test set of the suite {suite.name} can be read: {_by_set(problems)}"
    )


def _by_set(problems: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{name}: {'; '.join(sentences)}" for name, sentences in problems.items())


@dataclass(frozen=True)
class Pictures(Dataset[Any]):
    """Squares (S, S, 3), uint8, before they are normalised, and labels."""

    samples: Sequence[tuple[Any, int]]
    border: int
    plan: planning.Plan

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        sample, label = self.samples[number]
        if isinstance(sample, str):
            with data.whole_pictures():
                return picture_files.read_picture(self._square_of_file, sample), label
        return self._square(torch.as_tensor(sample)), label

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
        return planning.first_stage(self.plan, inside)[0]
