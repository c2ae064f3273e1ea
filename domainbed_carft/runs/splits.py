"""The splits of a saved run, divided as upstream's domainbed/scripts/train.py does at b93c22a."""

from __future__ import annotations

import contextlib
import copy
import importlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from domainbed.lib import misc
from PIL import ImageFile
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from domainbed_carft import machine
from domainbed_carft.clips import pictures
from domainbed_carft.errors import CarftError
from domainbed_carft.method import dataset_facts, prompts
from domainbed_carft.method.hparams import UNCHECKED
from domainbed_carft.pictures import rng
from domainbed_carft.runs.saved import TrainedRun
from domainbed_carft.text import differences, progress

picture_batches: Any = None
with contextlib.suppress(ImportError):  # our harness's; no other host draws by a key
    picture_batches = importlib.import_module("domainbed.lib.picture_batches")

PICTURES_OF_A_SOUP = (
    "Pictures: all through the test transform; a soup has no seed and no step to augment by."
)

MANY_PICTURES = 5000  # below, starting processes takes longer than they save
MOST_ENVIRONMENTS = 4096  # of a data set; a number in a file must not take all memory


@dataclass(frozen=True)
class Split:
    """A split: its name in the records, its environment, and its pictures.

    ``is_target``: whether that is a test environment. ``items``: a map-style torch data set of
    (x, y); an item's augmentation is the same whenever and by whichever process it is read.
    """

    name: str
    environment: str
    is_target: bool
    items: Dataset[Any]

    def __len__(self) -> int:
        return len(self.items)  # type: ignore[arg-type]


def splits(run: TrainedRun, data_dir: str | None = None) -> list[Split]:
    """The splits of the run's job: all in-splits, all out-splits, all uda-splits.

    ``data_dir`` defaults to the one that the job was trained with; for a user's own data it is the
    data folder itself. On our harness an augmented picture is exactly the one that `train`
    evaluated at the step of the weights. A soup has neither seed nor step: all its pictures go
    through the test transform.

    Raises CarftError if the data is missing, or is not the run's.
    """
    hparams, seed = copy.deepcopy(dict(run.hparams)), run.args.get("seed", 0)
    folder = data_dir or run.args.get("data_dir")
    targets = run.args["test_envs"]
    try:
        dataset_class = _dataset_class(run, data_dir)
        with rng.preserved_states():  # the data set may draw
            rng.reseed(seed)
            dataset = dataset_class(folder, _not_augmented(run), hparams)
        if data_dir and not os.path.isdir(data_dir):  # of data sets that read no folder
            raise CarftError(f"there is no folder {data_dir}")
        if beyond := set(targets) - set(range(len(dataset))):
            raise ValueError(f"test_envs has {beyond}, but there are {len(dataset)} environments")
        divided = _divided(run, dataset, targets)
        last = int(run.args.get("steps") or dataset.N_STEPS) - 1
    except Exception as error:  # a host's class may raise anything, and the file say anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CarftError(
            f"the data set {run.args.get('dataset')} of {run.path} cannot be read from "
            f"{folder or 'there'} and split as in training: {reason}. Give the place of the data "
            "with --data_dir; for your own data, the data folder itself"
        ) from error
    wanted = run.algorithm.input.preprocessing
    told = run.content.get("pictures"), (wanted.resolution, wanted.mean, wanted.std)
    how = picture_batches and picture_batches.pictures_from_description(*told)
    if how and how.model_input:
        dataset_facts.renormalise(hparams, (wanted.mean, wanted.std))
    seen = dataset_facts.recall(hparams, prompts.named_dataset(hparams["class_names"]))
    _require_same_data(run, dataset, targets, seen)
    names = [environment.name for environment in seen.environments]
    names = names if len(names) == len(dataset) else [*map(str, range(len(dataset)))]
    # As in `train`: seed, step, the split's number, and the picture's.
    step = last if run.step is None else run.step
    key = (seed % 2**64, 0 if run.algorithm.is_constant else step)
    kinds = getattr(dataset, "EVALUATED_SPLITS", ("in", "out", "uda"))  # as in `train`
    return [
        Split(name, names[index], index in targets, _Items(part, (*key, number), how))
        for number, (name, index, part) in enumerate(divided)
        if name.rpartition("_")[2] in kinds
    ]


def step_of(run: TrainedRun, data_dir: str | None = None) -> int | None:
    """The step of the run's weights; None for a soup, and where the number of steps is unknown."""
    if run.soup is not None or run.step is not None:
        return run.step

    steps = run.args.get("steps")
    if not steps:
        with contextlib.suppress(Exception):  # the data is missing, or a host's class is odd
            steps = _dataset_class(run, data_dir).N_STEPS
    return steps - 1 if type(steps) is int else None


def transform_name(run: TrainedRun) -> str:
    """How `splits` transforms the pictures of training environments, for a key in JSON."""
    return "as in training" if run.soup is None else "test"


def choose_device(asked: str | None) -> torch.device:
    """``asked``, such as "cuda:1", else the GPU if there is one; CarftError if it is missing.

    Convolutions are made deterministic, as in DomainBed's train.
    """
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    name = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        there = torch.empty(1, device=name)
        there.cpu()  # "meta" has nothing to give back
        if there.device.type == "cpu":
            machine.keep_freed_memory()
        return there.device
    except (RuntimeError, AssertionError) as error:
        told = f"({str(error).splitlines()[0]}); expected cpu, cuda or cuda:N of this machine"
        raise CarftError(f"--device {name} cannot be used {told}") from error


def workers(asked: int | None, many: bool) -> int:
    """The number of loader processes: ``asked``, else one per core if there are many pictures."""
    default = min(8, machine.cores()) if many else 0
    return default if asked is None else asked


def batches(
    found: Sequence[Split], batch_size: int, asked_workers: int | None
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The number of a split, pictures and labels, for all pictures of all splits, in order.

    Raises CarftError where a picture cannot be read.
    """
    total = sum(map(len, found))
    processes = workers(asked_workers, total >= MANY_PICTURES)
    with progress(total=total, unit="picture", description="evaluating", delay=2) as bar:
        for number, split in enumerate(found):
            try:
                for x, y in DataLoader(split.items, batch_size, num_workers=processes):
                    yield number, x, y
                    bar.update(len(x))
            except (OSError, CarftError) as error:  # Pillow's, the harness's; a worker's traceback
                reason = re.sub(r"^[\w.]+Error: ", "", str(error).rstrip().rpartition("\n")[2])
                told = f"a picture of {split.environment} ({split.name}): {reason}"
                raise CarftError(told) from error


@contextlib.contextmanager
def whole_pictures() -> Iterator[None]:
    """Have Pillow refuse files that are cut off, which DomainBed has it fill up with grey."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _dataset_class(run: TrainedRun, data_dir: str | None) -> Any:
    """The host's class of the run's data set; of a user's own data, of the folder ``data_dir``."""
    from domainbed import datasets

    name = run.args["dataset"]
    # The harness's function takes a folder of the user's own, too; not every fork has one.
    look_up = getattr(datasets, "get_dataset_class", vars(datasets).__getitem__)
    if data_dir and name not in vars(datasets):
        if not os.path.isdir(data_dir):
            raise CarftError(f"there is no folder {data_dir}")
        name = data_dir
    return look_up(name)


def _not_augmented(run: TrainedRun) -> list[int]:
    """The environments that the data set shall not augment: those left out, of a soup all."""
    targets: list[int] = run.args["test_envs"]
    if run.soup is None:
        return targets
    count = run.content["model_num_domains"] + len(targets)
    return list(range(min(count, MOST_ENVIRONMENTS)))


def _require_same_data(
    run: TrainedRun, dataset: Any, targets: Sequence[int], seen: dataset_facts.Seen
) -> None:
    same: list[tuple[str, Any, Any]] = [
        ("environments", run.content["model_num_domains"] + len(targets), len(dataset)),
        ("classes", len(run.classes), dataset.num_classes),
    ]
    if prompts.named_dataset(run.hparams["class_names"]) is not None:
        shown = [e.classes for e in seen.environments if e.classes]
        same += [_differing_classes(run.classes, [*map(prompts.clean, names)]) for names in shown]
    edition = run.hparams["data_edition"]
    if seen.edition and edition not in ("", UNCHECKED):
        same.append(("data_edition", edition, seen.edition))
    if normalisation := dataset_facts.agreed_normalisation(seen.environments):
        ours = run.algorithm.input
        inputs = ours, pictures.CLIPInput(ours.preprocessing, *normalisation)
        then, now = (
            [[round(x, 4) for x in b.flatten().tolist()] for b in i.buffers()] for i in inputs
        )
        same.append(("normalisation", then, now))
    for what, then, now in same:
        if then != now:
            before, found = (then, now) if isinstance(then, str) else differences(then, now)
            raise CarftError(
                f"the data set {run.args['dataset']} is not what {run.path} was trained on: {what} "
                f"{before} then, {found} now. Restore the data, or give its place with --data_dir"
            )


MOST_CLASSES = 20  # whose names an error lists


def _differing_classes(then: Sequence[str], now: Sequence[str]) -> tuple[str, Any, Any]:
    """A label and the values, then and now; of many class names the first that differ."""
    if len(then) <= MOST_CLASSES or len(then) != len(now):
        return "classes", list(then), list(now)
    pairs = enumerate(zip(then, now))
    label, names = next((pair for pair in pairs if pair[1][0] != pair[1][1]), (0, ("", "")))
    return f"the class of label {label}", *names


def _divided(run: TrainedRun, dataset: Any, targets: Sequence[int]) -> list[tuple[str, int, Any]]:
    """Name, index of the environment and items of each split, in the order of the records."""
    shares = run.args.get("holdout_fraction", 0.2), run.args.get("uda_holdout_fraction", 0)
    found: dict[str, list[tuple[str, int, Any]]] = {"in": [], "out": [], "uda": []}
    for index, environment in enumerate(dataset):
        seed = misc.seed_hash(run.args.get("trial_seed", 0), index)
        parts, rest = dict[str, Any](), environment
        for kind, share in zip(("out", "uda") if index in targets else ("out",), shares):
            parts[kind], rest = misc.split_dataset(rest, int(len(rest) * share), seed)
        for kind, items in {"in": rest, **parts}.items():
            if kind != "uda" or len(items):  # counted from 0, whichever environments they are of
                found[kind].append((f"env{len(found[kind])}_{kind}", index, items))
    return [split for kind in found.values() for split in kind]


class _Items(Dataset[Any]):
    """Items, each read with random numbers that depend on ``key`` and its position alone.

    ``how``: our harness's word on how the job got its pictures, if this is our harness.
    """

    def __init__(self, items: Any, key: tuple[int, ...], how: Any) -> None:
        self._items = items
        self._key = key
        self._source = how and how.source(items)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, position: int) -> Any:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[Any]:
        items = []
        with rng.preserved_states():
            if self._source:
                requests = [(0, position, (*self._key, position)) for position in positions]
                batch = self._source.batch(requests)
                return list(zip(*(batch.finish() if hasattr(batch, "finish") else batch)))
            for position in positions:
                # On our harness as in `domainbed.lib.fast_data_loader`.
                seed_of = rng.seed_of if picture_batches else misc.seed_hash
                rng.reseed(int(seed_of(*self._key, position)))
                items.append(self._items[position])
        return items
