"""What is seen of a sweep's data before its jobs are launched: each data set is looked at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from domainbed_carft import plugin
from domainbed_carft.data import benchmarks, verify
from domainbed_carft.errors import CarftError
from domainbed_carft.method.hparams import ALGORITHMS, UNCHECKED
from domainbed_carft.sweep import names

if TYPE_CHECKING:
    from domainbed_carft.sweep.declaration import Declaration


class Look(NamedTuple):
    """A data set and the verdict on it, in words.

    ``broken`` are reasons why no job could run, ``refused`` those why none of our algorithms would,
    ``absent`` why the data is not to be seen from here.
    """

    name: str
    verdict: str
    broken: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}: {self.verdict}"


def look(declaration: Declaration, data_dir: str) -> list[Look]:
    """A look at each data set, in no picture of it."""
    return [_look(name, data_dir, _is_meant(declaration, name)) for name in declaration.datasets]


def problems(
    looks: Sequence[Look], algorithms: Sequence[str], setting: str, absent_too: bool
) -> list[str]:
    """Why nothing should be launched on that data; what is absent may be there where jobs run.

    ``setting`` says how the sweep's ``algorithms`` that are ours are told to train nevertheless.
    """
    told = [text for one in looks for text in (*one.broken, *(one.absent if absent_too else ()))]
    refused = [text for one in looks for text in one.refused]
    if not refused or set(ALGORITHMS).isdisjoint(algorithms):
        return told
    return [*told, *refused[:-1], f"{refused[-1]}. To train on it as it is: {setting}."]


def _is_meant(declaration: Declaration, dataset: str) -> bool:
    """Whether all jobs on the data set ask for no check."""
    return all(
        declaration.hparams_of(dataset, algorithm, variant).get("data_edition") == UNCHECKED
        for variant in declaration.variants
        for algorithm in declaration.algorithms_of(variant)
    )


def _look(name: str, data_dir: str, unchecked: bool) -> Look:
    if name in benchmarks.BENCHMARKS and not benchmarks.BENCHMARKS[name].folder:
        return Look(name, "in the package")
    folder = names.picture_folder(name, data_dir)
    told = names.data_problems(name, data_dir)
    if folder is None or not os.path.isdir(folder):
        where = "no folder of its pictures is known" if folder is None else f"no {folder} here"
        return Look(name, f"not seen, {where}", absent=told)
    if told:
        return Look(name, "broken", broken=told)
    if unchecked or plugin.switched_off():
        return Look(name, "not checked, as asked")
    try:
        found = verify.examine(name, Path(folder))
    except CarftError as error:
        return Look(name, "broken", broken=(str(error),))
    if found.problems:
        return Look(name, "broken", refused=(found.refusal,))
    return Look(name, f"{found.data_edition}, {found.pictures:,} pictures in {folder}")
