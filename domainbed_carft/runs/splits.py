"""The splits of a saved run: the same data set class, transforms, seeds and division.

The division is that of upstream file domainbed/scripts/train.py at b93c22a, and asks a host for no
more than it has.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from domainbed_carft.errors import CarftError
from domainbed_carft.method import observed, prompts
from domainbed_carft.runs import same_data
from domainbed_carft.runs.saved import Run


@dataclass(frozen=True)
class Split:
    """A split: its name in the records, the environment it is of, and its pictures.

    ``is_target``: whether that is a test environment. ``items``: a map-style torch data set of
    (x, y); what an augmentation draws for an item is the same each time it is read, in whatever
    order and by whatever process.
    """

    name: str
    environment: str
    is_target: bool
    items: Dataset[Any]

    def __len__(self) -> int:
        return len(self.items)  # type: ignore[arg-type]


def splits(run: Run, data_dir: str | None = None) -> list[Split]:
    """The splits of the job that ``run`` is of: all in-splits, all out-splits, all uda-splits.

    ``data_dir`` is the one that the job was trained with, unless given; a data set that is a path
    is looked for in one that is given. On our harness an augmented picture is the very one
    that `train` evaluated at the step of the weights.

    Raises CarftError where the data is not there, or is not that of the run.
    """
    targets = _targets(run)
    hparams = copy.deepcopy(dict(run.hparams))
    dataset = _dataset(run, data_dir, hparams)
    seen = observed.recall(hparams, prompts.named_dataset(hparams["class_names"]))
    same_data.require(run, dataset, seen)
    named = _divided(run, dataset, targets)
    names = _environment_names(dataset, seen)
    steps = _number(run, "steps", None) or dataset.N_STEPS
    step = steps - 1 if run.step is None else run.step
    key = (run.args.get("seed", 0) % 2**64, step)  # and the split's number, as `train` has it
    return [
        Split(name, names[index], index in targets, _Items(part, (*key, number)))
        for number, (name, index, part) in enumerate(named)
    ]


def same_pictures(run: Run) -> bool:
    """Whether augmented pictures are those that the run's records are of.

    They are where our harness has trained, and is here now. No other host draws by a key.
    """
    return _drawing() is not None and "keep_weights" in run.args


def _targets(run: Run) -> list[int]:
    """The indices of the test environments."""
    found = run.args.get("test_envs")
    whole = isinstance(found, list) and all(isinstance(index, int) for index in found)
    if not whole or "dataset" not in run.args:
        raise CarftError(
            f"{run.path} does not say by which data set and test environments it was trained, as "
            f"DomainBed's train does (args: dataset, test_envs); found {dict(run.args)}"
        )
    return list(found or ())


def _number(run: Run, name: str, default: Any, most: float = float("inf")) -> Any:
    value = run.args.get(name, default)
    if value is not None and not (isinstance(value, (int, float)) and 0 <= value <= most):
        raise CarftError(
            f"{run.path} was trained with {name} {value!r}, by which no data can be divided; was "
            "it changed after domainbed.scripts.train had saved it?"
        )
    return value


def _dataset(run: Run, data_dir: str | None, hparams: dict[str, Any]) -> Any:
    """The data set as `train` builds it, which may draw: after seeding everything."""
    folder = run.args.get("data_dir") if data_dir is None else data_dir
    try:
        cls = same_data.dataset_class(run, data_dir)
        with _generators_kept():
            _reseed(run.args.get("seed", 0))
            return cls(folder, run.args["test_envs"], hparams)
    except Exception as error:  # a host's class may raise anything
        where = f"from {folder}" if folder else "(no --data_dir was given)"
        raise CarftError(
            f"the data set {run.args['dataset']} of {run.path} cannot be read {where}: "
            f"{same_data.reason(error)} Give the folder that it lies in as --data_dir, also for a "
            "data set that is a path and was moved"
        ) from error


def _divided(run: Run, dataset: Any, targets: Sequence[int]) -> list[tuple[str, int, Any]]:
    """Name, index of the environment and items of each split, in the order of the records."""
    from domainbed.lib import misc

    held_out = _number(run, "holdout_fraction", 0.2, most=1)
    unlabeled = _number(run, "uda_holdout_fraction", 0, most=1)
    ins: list[tuple[str, int, Any]] = []
    outs: list[tuple[str, int, Any]] = []
    udas: list[tuple[str, int, Any]] = []
    for index, environment in enumerate(dataset):
        seed = misc.seed_hash(run.args.get("trial_seed", 0), index)
        out, rest = misc.split_dataset(environment, int(len(environment) * held_out), seed)
        if index in targets:
            uda, rest = misc.split_dataset(rest, int(len(rest) * unlabeled), seed)
            if len(uda):  # counted from 0, whichever environments they are of
                udas.append((f"env{len(udas)}_uda", index, uda))
        ins.append((f"env{index}_in", index, rest))
        outs.append((f"env{index}_out", index, out))
    return [*ins, *outs, *udas]


def _environment_names(dataset: Any, seen: observed.Seen) -> list[str]:
    count = len(dataset)
    for names in (
        [environment.name for environment in seen.environments],
        [str(label) for label in getattr(dataset, "ENVIRONMENTS", None) or ()],
    ):
        if len(names) == count:
            return names
    return [str(index) for index in range(count)]


class _Items(Dataset[Any]):
    """Items, each read with random numbers that depend on ``key`` and its position alone."""

    def __init__(self, items: Any, key: tuple[int, ...]) -> None:
        self._items = items
        self._key = key

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, position: int) -> Any:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[Any]:
        items = []
        with _generators_kept():
            for position in positions:
                _reseed(_seed_of(*self._key, position))
                items.append(self._items[position])
        return items


def _seed_of(*key: int) -> int:
    """On our harness the seed that `domainbed.lib.fast_data_loader` draws an item with."""
    drawing = _drawing()
    if drawing is not None:
        return int(drawing.seed_of(*key))
    from domainbed.lib import misc

    return int(misc.seed_hash(*key))


def _drawing() -> Any:
    """Our harness's module of draws by a key; None for another host."""
    try:
        from domainbed.lib import drawing
    except ImportError:
        return None
    return drawing


@contextlib.contextmanager
def _generators_kept() -> Iterator[None]:
    """The three generators that transforms draw from go on afterwards as before."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _reseed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
