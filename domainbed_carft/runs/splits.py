"""The splits of a saved run: the same data set class, transforms, seeds and division.

The division is that of upstream file domainbed/scripts/train.py at b93c22a, and asks a host for no
more than it has.
"""

from __future__ import annotations

import contextlib
import copy
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from domainbed_carft import launchers
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import folder, records
from domainbed_carft.method import observed, pictures, prompts
from domainbed_carft.method.arguments import UNCHECKED
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
    require(run, dataset, seen)
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
        cls = dataset_class(run, data_dir)
        with _generators_kept():
            _reseed(run.args.get("seed", 0))
            return cls(folder, run.args["test_envs"], hparams)
    except Exception as error:  # a host's class may raise anything
        where = f"from {folder}" if folder else "(no --data_dir was given)"
        raise CarftError(
            f"the data set {run.args['dataset']} of {run.path} cannot be read {where}: "
            f"{reason(error)} Give the folder that it lies in as --data_dir, also for a "
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


def dataset_class(run: Run, data_dir: str | None) -> Any:
    """The data set's class, of this host.

    For a user's own folder that is not where the run found it, or where another ``data_dir`` than
    the run's is given, that of ``data_dir/NAME`` or of ``data_dir`` itself, if they hold its
    environments. Raises whatever the host raises for a name that it does not know, and CarftError
    for a folder that is in none of these places.
    """
    from domainbed import datasets

    name = run.args["dataset"]
    # The harness's function finds a user's own folders, too; not every fork has one.
    look_up = getattr(datasets, "get_dataset_class", None)
    if look_up is None:
        return vars(datasets)[name]
    if data_dir is None or name in vars(datasets):
        return look_up(name)
    try:
        found = look_up(name)
        why = f"Without --data_dir it is {name}, where the run found it."
    except Exception as error:  # a host may raise anything
        found, why = None, reason(error)
    is_path = getattr(found, "FOLDER", None) == name  # no list says where it is
    if found is not None and (not is_path or _is_recorded(run, data_dir)):
        return found
    return look_up(_moved(name, data_dir, _environments(run), why))


def _is_recorded(run: Run, data_dir: str) -> bool:
    """Whether the run was given this one, which its path did not need."""
    recorded = run.args.get("data_dir")
    return isinstance(recorded, str) and os.path.realpath(recorded) == os.path.realpath(data_dir)


def reason(error: Exception) -> str:
    """What a host says of data, in one line, without the heading that our harness gives it."""
    told = getattr(error, "problems", [str(error)])
    return " ".join(" ".join(told).split()) or type(error).__name__


def _moved(name: str, data_dir: str, environments: Sequence[str], reason: str) -> str:
    """The folder that was ``name``: below ``data_dir`` by its last part, else ``data_dir``."""
    places = [os.path.join(data_dir, os.path.basename(os.path.normpath(name)))]
    if environments or os.sep in name:
        places.append(data_dir)
    for place in map(os.path.abspath, places):
        if os.path.isdir(place):
            with os.scandir(place) as entries:
                inside = {entry.name for entry in entries if entry.is_dir()}
            if inside and inside.issuperset(environments):
                return place
    what = f"A folder with {', '.join(environments)} in it" if environments else "Its folder"
    raise CarftError(f"{reason} {what} was looked for as {' and as '.join(places)}.")


def _environments(run: Run) -> list[str]:
    """The names of the environments, as the run's records tell them of a user's own folder."""
    found, _ = records.whole_records(str(run.path.parent / folder.RECORDS))
    for record in reversed(found):
        told = record.get("environments")
        if record["args"].get("dataset") == run.args["dataset"] and isinstance(told, list):
            return [str(name) for name in told]
    return []


def require(run: Run, dataset: Any, seen: observed.Seen) -> None:
    """Raise CarftError, naming the difference, unless ``dataset`` is that of the run.

    Compared is what the run knows: the number of its classes, their names where they are from
    folders, the environments of its records, the edition, and how pictures are normalised.
    """
    name = run.args["dataset"]
    if dataset.num_classes != len(run.classes):
        raise CarftError(
            f"the data set {name} has {dataset.num_classes} classes, but {run.path} was trained "
            f"on {len(run.classes)}: {', '.join(run.classes)}. Is this its data?"
        )
    missing = [index for index in run.args["test_envs"] if index >= len(dataset)]
    if missing:
        raise CarftError(
            f"the data set {name} has {len(dataset)} environments, but {run.path} was tested on "
            f"number {missing[0]}. Is this its data?"
        )
    _require_names("environment", _environments(run), [e.name for e in seen.environments], run)
    for classes in _classes(run.hparams, seen):
        _require_names("class", run.classes, classes, run)
    recorded = run.hparams.get("data_edition", "")
    unknown = recorded in ("", UNCHECKED) or not seen.edition
    if not unknown and not observed.is_edition(recorded, seen.edition):
        raise CarftError(
            f"{run.path} was trained on data that was {recorded!r}, and the data is now "
            f"{seen.edition!r}: the pictures that it was trained on and those kept from it would "
            f"be mixed. `carft data verify` counts what is there; {_REMEDY}"
        )
    _require_normalisation(run, seen)


_REMEDY = "put the data back as it was, give the --data_dir that has it, or train on this anew"


def _require_names(what: str, before: Sequence[str], now: Sequence[str], run: Run) -> None:
    """The same names in the same order, where both are known."""
    if not before or not now or list(before) == list(now):
        return
    index = next(
        (i for i, (old, new) in enumerate(zip(before, now)) if old != new),
        min(len(before), len(now)),
    )
    old, new = (repr(names[index]) if index < len(names) else "none" for names in (before, now))
    raise CarftError(
        f"{what} {index} of the data set {run.args['dataset']} was {old} when {run.path} was "
        f"trained, and is now {new} (then: {', '.join(before)}; now: {', '.join(now)}): "
        f"its numbers would be of other pictures. {_REMEDY.capitalize()}"
    )


def _classes(hparams: Mapping[str, Any], seen: observed.Seen) -> list[list[str]]:
    """By environment the class names of its folders; none if the run had them from elsewhere."""
    if prompts.named_dataset(hparams["class_names"]) is None:
        return []
    return [[prompts.clean(name) for name in e.classes] for e in seen.environments if e.classes]


def _require_normalisation(run: Run, seen: observed.Seen) -> None:
    shown = pictures.normalisation(seen.environments)
    ours = run.algorithm.input
    if shown is not None and not _undoes(ours, pictures.CLIPInput(ours.resolution, *shown)):
        raise CarftError(
            f"the pictures of {run.args['dataset']} are normalised by mean and deviation {shown}, "
            f"and {run.path} was trained with others; evaluate it with the DomainBed that has "
            "trained it"
        )


def _undoes(one: pictures.CLIPInput, other: pictures.CLIPInput) -> bool:
    pairs = ((one.scale, other.scale), (one.shift, other.shift))
    return all(torch.allclose(ours, theirs) for ours, theirs in pairs)


# Below this many pictures starting processes takes longer than they save.
MANY_PICTURES = 5000
MOST_WORKERS = 8


def choose_device(asked: str | None) -> torch.device:
    """``asked``, such as "cuda:1", else the GPU if there is one.

    Convolutions are made repeatable, as DomainBed's train makes them. Raises CarftError for what is
    no device, or is not there.
    """
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    name = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"a {device.type}")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise CarftError(
            f"--device {name} cannot be used ({reason}); expected cpu, cuda or cuda:N, N being the "
            "number of a GPU of this machine"
        ) from error
    return device


def choose_workers(asked: int | None, pictures: int) -> int:
    """``asked`` processes that load pictures, else one a core where there are many pictures."""
    if asked is not None:
        return asked
    return min(MOST_WORKERS, launchers.cores()) if pictures >= MANY_PICTURES else 0


def batches(
    splits: Sequence[Split], batch_size: int, workers: int | None
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The number of a split, pictures and labels, for all pictures of all splits, in order.

    Raises CarftError where a picture cannot be read.
    """
    total = sum(map(len, splits))
    processes = choose_workers(workers, total)
    with tqdm(total=total, unit="picture", desc="evaluating", delay=2, disable=None) as bar:
        for number, split in enumerate(splits):
            loader = DataLoader(split.items, batch_size, num_workers=processes)
            try:
                for x, y in loader:
                    yield number, x, y
                    bar.update(len(x))
            except OSError as error:  # of Pillow's, too
                reason = _last_line(error)
                if "--decode" not in reason:  # which our harness says
                    reason += ". `carft data verify --decode` says which"
                raise CarftError(
                    f"a picture of {split.environment} ({split.name}) cannot be read: {reason}"
                ) from error


def _last_line(error: Exception) -> str:
    """What an error says; of a worker's, which is a whole traceback, without the type's name."""
    kind = type(error)
    words = (str(error).strip() or kind.__name__).splitlines()[-1]
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return words.removeprefix(f"{module}{kind.__qualname__}: ")


@contextlib.contextmanager
def memory_told(batch_size: int) -> Iterator[None]:
    """Inside the block, a GPU whose memory does not suffice becomes a CarftError."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise CarftError(
            f"the GPU has too little memory for batches of {batch_size} pictures; give a smaller "
            "--batch_size, or --device cpu"
        ) from error
