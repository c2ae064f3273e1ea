"""The splits of a saved run, divided as upstream's domainbed/scripts/train.py does at b93c22a.

Only of the data that the run was trained on: other data is refused. Their digests tell whether the
images are still those that a run was evaluated on.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from domainbed.lib import misc
from torch.utils.data import Dataset, Subset

from domainbed_carft.errors import CarftError
from domainbed_carft.images import rng
from domainbed_carft.images.clip_input import CLIPInput
from domainbed_carft.jobs.splits import (
    NamedSplit,
    name_splits,
    select_evaluated,
    split_environments,
)
from domainbed_carft.method import dataset_facts, host_lookup, prompts
from domainbed_carft.method.hparams import UNCHECKED
from domainbed_carft.paths import AnyPath, as_text
from domainbed_carft.runs.run import Run
from domainbed_carft.text import differences

SEEDS = 2**64  # a key's seed is taken modulo this
DEFAULT_HOLDOUT_FRACTION = 0.2  # as in DomainBed's train


@dataclass(frozen=True)
class Split:
    """A split: its name in the records, its environment, and its images.

    ``is_target``: whether that is a test environment. ``items``: a map-style torch dataset of
    (image, label); an item's augmentation is the same whenever and by whichever process it is
    read. ``number``: of the environment, from 0.
    """

    name: str
    environment: str
    is_target: bool
    items: Any
    number: int = 0

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class RunData:
    """The dataset of a run, and the splits that its records have.

    ``dataset``: the host's, a list of environments. ``images``: how our harness reads the job's
    images; None on another host.
    """

    dataset: Any
    splits: list[Split]
    images: Any

    def items(self, number: int, positions: Sequence[int]) -> Dataset[Any]:
        """The images of an environment at these positions, as the splits' images are read."""
        part = Subset(self.dataset[number], positions)
        return _KeyedItems(part, (number,), self.images)


def splits(run: Run, data_dir: AnyPath | None = None) -> list[Split]:
    """The splits of the run's job: all in-splits, all out-splits, all uda-splits.

    ``data_dir`` defaults to the one that the job was trained with; for a user's own data it is the
    data folder itself. On our harness an augmented image is exactly the one that `train`
    evaluated at the step of the weights. A soup has neither seed nor step: all its images go
    through the test transform.

    Raises CarftError if the data is missing, or is not the run's.
    """
    return read_data(run, as_text(data_dir), is_augmented=run.soup is None).splits


def read_data(run: Run, data_dir: str | None = None, *, is_augmented: bool) -> RunData:
    """The data of the run's job, split as in training; raises as `splits`.

    ``is_augmented``: whether the images of training environments are augmented, as in training,
    instead of going through the test transform.
    """
    targets = run.args["test_envs"]
    seed = run.args.get("seed", 0)
    hparams = copy.deepcopy(dict(run.hparams))  # to which the dataset adds
    folder = data_dir or run.args.get("data_dir")
    try:
        dataset = _make_dataset(run, data_dir, hparams, is_augmented)
        job_splits = _split_as_trained(run, dataset)
        last_step = int(run.args.get("steps") or dataset.N_STEPS) - 1
    except Exception as error:  # a host's class may raise anything, and the file say anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CarftError(
            f"the dataset {run.args.get('dataset')} of {run.path} cannot be read from "
            f"{folder or 'there'} and split as in training: {reason}. Give the place of the data "
            "with --data_dir; for your own data, the data folder itself"
        ) from error

    # Its facts are known by its own name, which for a user's folder is the place it has now.
    hparams["class_names"] = f"{dataset_facts.DATASET_PREFIX}{type(dataset).__name__}"
    images = _recorded_images(run, hparams)
    facts = dataset_facts.recall(hparams)
    require_same_data(run, dataset, targets, facts)
    names = _environment_names(facts, len(dataset))

    # As in `train`: seed, step, the split's number, and the image's.
    step = last_step if run.step is None else run.step
    key = (seed % SEEDS, 0 if run.algorithm.is_constant else step)
    numbers = {split.name: number for number, split in enumerate(job_splits)}
    kinds = host_lookup.get_evaluated_kinds(dataset)
    evaluated_splits = [
        Split(
            name=split.name,
            environment=names[split.environment],
            is_target=split.environment in targets,
            items=_KeyedItems(split.items, (*key, numbers[split.name]), images),
            number=split.environment,
        )
        for split in select_evaluated(job_splits, kinds)
    ]
    return RunData(dataset, evaluated_splits, images)


def require_same_data(
    run: Run, dataset: Any, targets: Sequence[int], facts: dataset_facts.DatasetFacts
) -> None:
    """Raise CarftError, with both values, if the data differs from what the run was trained on."""
    domains = run.content["model_num_domains"] + len(targets)
    # A fact of the data: its name, its value in training, and its value now.
    comparisons: list[tuple[str, Any, Any]] = [
        ("environments", domains, len(dataset)),
        ("classes", len(run.classes), dataset.num_classes),
    ]
    if dataset_facts.parse_dataset_name(run.hparams["class_names"]) is not None:
        for environment in facts.environments:
            if environment.classes:
                names = [prompts.clean(name) for name in environment.classes]
                comparisons.append(("classes", run.classes, names))

    edition = run.hparams.get("data_edition", "")
    if facts.edition and edition not in ("", UNCHECKED):
        comparisons.append(("data_edition", edition, facts.edition))

    normalisation = dataset_facts.common_normalisation(facts.environments)
    if normalisation:
        model_input = run.algorithm.input
        input_now = CLIPInput(model_input.preprocessing, *normalisation)
        comparisons.append(("normalisation", _rounded(model_input), _rounded(input_now)))

    for name, before, now in comparisons:
        if before != now:
            is_text = isinstance(before, str)
            before_text, now_text = (before, now) if is_text else differences(before, now)
            raise CarftError(
                f"the dataset {run.args['dataset']} is not what {run.path} was trained on: {name} "
                f"{before_text} then, {now_text} now. Restore the data, or give its place with "
                "--data_dir"
            )


def _rounded(model_input: CLIPInput) -> list[list[float]]:
    """Scale and shift of an input, to four decimals."""
    return [
        [round(value, 4) for value in buffer.flatten().tolist()] for buffer in model_input.buffers()
    ]


def _split_as_trained(run: Run, dataset: Any) -> list[NamedSplit]:
    """All splits of the run's job; raises ValueError for targets that the dataset has not."""
    targets = run.args["test_envs"]
    unknown_targets = set(targets) - set(range(len(dataset)))
    if unknown_targets:
        raise ValueError(
            f"test_envs has {unknown_targets}, but there are {len(dataset)} environments"
        )

    environments = split_environments(
        environments=dataset,
        targets=targets,
        trial_seed=run.args.get("trial_seed", 0),
        holdout_fraction=run.args.get("holdout_fraction", DEFAULT_HOLDOUT_FRACTION),
        uda_holdout_fraction=run.args.get("uda_holdout_fraction", 0),
        host_functions=misc,
    )
    return name_splits(environments)


def _environment_names(facts: dataset_facts.DatasetFacts, count: int) -> list[str]:
    """The names of the environments; their numbers where the host's dataset has no names."""
    names = [environment.name for environment in facts.environments]
    return names if len(names) == count else [str(index) for index in range(count)]


def step_of(run: Run, data_dir: str | None = None) -> int | None:
    """The step of the run's weights; None for a soup, and where the number of steps is unknown."""
    if run.soup is not None or run.step is not None:
        return run.step

    steps = run.args.get("steps")
    if not steps:
        with contextlib.suppress(Exception):  # the data is missing, or a host's class is odd
            steps = _dataset_class(run, data_dir).N_STEPS
    return steps - 1 if type(steps) is int else None


def transform_name(run: Run) -> str:
    """How `splits` transforms the images of training environments, for a key in JSON."""
    return "as in training" if run.soup is None else "test"


def _make_dataset(
    run: Run, data_dir: str | None, hparams: dict[str, Any], is_augmented: bool
) -> Any:
    """The run's dataset, drawn by its seed as in training; raises whatever its class raises."""
    dataset_class = _dataset_class(run, data_dir)
    with rng.preserved_states():  # the dataset may draw
        rng.reseed(run.args.get("seed", 0))
        folder = data_dir or run.args.get("data_dir")
        dataset = dataset_class(folder, _unaugmented_environments(run, is_augmented), hparams)

    if data_dir and not os.path.isdir(data_dir):  # of datasets that read no folder
        raise CarftError(f"there is no folder {data_dir}")
    return dataset


def _dataset_class(run: Run, data_dir: str | None) -> Any:
    """The host's class of the run's dataset; of a user's own data, of the folder ``data_dir``."""
    from domainbed import datasets

    name = run.args["dataset"]
    if data_dir and name not in vars(datasets):
        if not os.path.isdir(data_dir):
            raise CarftError(f"there is no folder {data_dir}")
        name = data_dir
    return host_lookup.find_dataset_class(name)


def _unaugmented_environments(run: Run, is_augmented: bool) -> list[int]:
    """The environments that the dataset shall not augment: those left out, else all."""
    targets: list[int] = run.args["test_envs"]
    if is_augmented:
        return targets

    count = run.content["model_num_domains"] + len(targets)
    return list(range(count))


def _recorded_images(run: Run, hparams: dict[str, Any]) -> Any:
    """How our harness reads the job's images; None on another host.

    Where the model's normalisation was applied, ``hparams`` gets it for the dataset's.
    """
    if not host_lookup.is_carft_harness():
        return None

    from domainbed.lib.image_batches import Images

    plan = run.image_plan
    if plan.is_for_model:
        dataset_facts.set_normalisation(hparams, (plan.mean, plan.std))
    return Images(plan)


def positions_in_environment(split: Split) -> list[int]:
    """Where the images of a split of `read_data` are in their environment, in order."""
    items = split.items.host_items
    positions = list(range(len(items)))
    while hasattr(items, "underlying_dataset"):  # upstream's name, of a part of a dataset
        positions = [items.keys[position] for position in positions]
        items = items.underlying_dataset
    return positions


def digest_of_images(environment: Any, positions: Sequence[int]) -> str:
    """The SHA-256 of the images of a host's environment at these positions, in order.

    Images in files count by their path below the environment's folder, label, size and time of
    change; those of a tensor by the tensor itself. Of other datasets only the labels are known,
    and the number of images. Raises OSError for a file that is missing.
    """
    digest = hashlib.sha256()
    for line in _descriptions(environment, positions):
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def _descriptions(environment: Any, positions: Sequence[int]) -> Iterator[str]:
    samples = getattr(environment, "samples", None)
    if samples is not None:
        root = str(getattr(environment, "root", ""))
        for position in positions:
            path, label = samples[position]
            yield f"{_file_description(path, root)} {label}"
        return

    tensors = getattr(environment, "tensors", None)
    if tensors is not None:
        for tensor in tensors:
            part = tensor[list(positions)].contiguous()
            yield hashlib.sha256(part.numpy().tobytes()).hexdigest()
        return

    yield f"{len(environment)} images"
    targets = getattr(environment, "targets", None)
    if targets is not None:
        yield " ".join(str(int(targets[position])) for position in positions)


def _file_description(path: str, root: str) -> str:
    """An image's path below ``root``, size and time of change."""
    status = os.stat(path)
    return f"{path.removeprefix(root)} {status.st_size} {status.st_mtime_ns}"


class _KeyedItems(Dataset[Any]):
    """Items, each read with random numbers that depend on ``key`` and its position alone.

    ``images``: how our harness reads the job's images; None on another host.
    """

    def __init__(self, items: Any, key: tuple[int, ...], images: Any) -> None:
        self._items = items
        self._key = key
        self._source = images and images.source(items)

    @property
    def host_items(self) -> Any:
        """The items as the host has them: an environment, or a part of one."""
        return self._items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, position: int) -> Any:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[Any]:
        with rng.preserved_states():
            if self._source:
                return self._read_by_plan(positions)
            return [self._read_host_item(position) for position in positions]

    def _read_by_plan(self, positions: Sequence[int]) -> list[Any]:
        requests = [(0, position, (*self._key, position)) for position in positions]
        batch = self._source.batch(requests)
        if hasattr(batch, "finish"):  # its second stage is still to come
            batch = batch.finish()
        return list(zip(*batch))

    def _read_host_item(self, position: int) -> Any:
        # As in the harness's `lib/fast_data_loader.py`; no other host draws by a key.
        seed_of = rng.seed_of if host_lookup.is_carft_harness() else misc.seed_hash
        rng.reseed(int(seed_of(*self._key, position)))
        return self._items[position]
