"""Read the splits of a saved run, divided like upstream's domainbed/scripts/train.py at b93c22a.

Data that differs from the run's training data is an error. Digests of the images show if they have
changed since an evaluation.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from domainbed.lib import misc
from torch.utils.data import Dataset, Subset

from domainbed_carft.errors import CarftError
from domainbed_carft.images import rng, stages
from domainbed_carft.images.clip_input import CLIPInput
from domainbed_carft.images.dataset_facts import NO_FACTS, DatasetFacts, parse_dataset_name
from domainbed_carft.images.plan import FAST, ImagePlan
from domainbed_carft.images.preprocessing import Preprocessing
from domainbed_carft.images.squares import Squares
from domainbed_carft.jobs.splits import (
    Split,
    name_splits,
    select_evaluated,
    split_environments,
)
from domainbed_carft.method import host_lookup, prompts
from domainbed_carft.method.hparams import UNVERIFIED
from domainbed_carft.paths import AnyPath, as_text
from domainbed_carft.results.metrics import ImageSetFacts
from domainbed_carft.runs.run import Run
from domainbed_carft.wording import trim_differences

SEEDS = 2**64  # the seed of a key is taken modulo this number
DEFAULT_HOLDOUT_FRACTION = 0.2  # the default of DomainBed's train


@dataclass(frozen=True)
class ImageSet:
    """A split of an environment, or a test set of a suite.

    Attributes:
        name: name in the records, such as "env0_in", or name of the test set.
        environment: name of the environment; of a test set, the name of its suite.
        is_target: True if the environment was held out in training, or the test set is shifted.
        items: a map-style torch dataset of (image, label). The augmentation of an item does not
            depend on when and in which process it is read.
        number: index of the environment, or of the test set in its suite, from 0.
        squares: the images before the second stage of their plan, if it has no random steps and
            reads them from files; otherwise None.
        classes: names of the test set's classes in label order, if they differ from the run's.
        groups: labels of the run's classes that count as each class; empty for a split.
        is_complete: True if no image of the test set is missing.
    """

    name: str
    environment: str
    is_target: bool
    items: Any
    number: int = 0
    squares: Squares | None = None
    classes: Sequence[str] = ()
    groups: Sequence[Sequence[int]] = ()
    is_complete: bool = True

    @property
    def facts(self) -> ImageSetFacts:
        """The facts for records, without a digest; the set needs to have images."""
        return ImageSetFacts(
            environment=self.environment,
            number=self.number,
            name=self.name,
            images=len(self),
            is_target=self.is_target,
            is_complete=self.is_complete,
            classes=list(self.classes),
        )

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class JobData:
    """The dataset of a run's job, and its splits.

    Attributes:
        dataset: the host's dataset, a list of environments.
        splits: the splits that the records name.
        plan: plan of the job's images in this package's harness; None on another host.
    """

    dataset: Any
    splits: list[ImageSet]
    plan: ImagePlan | None

    def select(self, split: ImageSet, positions: Sequence[int]) -> ImageSet:
        """Return a split with the images of its environment at ``positions``."""
        part = Subset(self.dataset[split.number], positions)
        items = _KeyedItems(part, (split.number,), self.plan)
        return dataclasses.replace(split, items=items, squares=items.squares)


def read_data(
    run: Run, data_dir: AnyPath | None = None, *, is_augmented: bool | None = None
) -> JobData:
    """Read the data of the run's job: all in-splits, then all out-splits, then all uda-splits.

    With the harness of this package, an augmented image equals the image that `train` evaluated at
    the step of the weights.

    Args:
        run: the run.
        data_dir: the folder that contains the dataset's folder or, for your own data, the data
            folder itself. Default: the recorded one.
        is_augmented: augment images of training environments, as in training, instead of applying
            the test transform. Default: True, but False for a soup, which has neither seed nor
            step.

    Raises:
        CarftError: if the data is missing or differs from the run's.
    """
    if is_augmented is None:
        is_augmented = run.soup is None
    targets = run.args["test_envs"]
    seed = run.args.get("seed", 0)
    hparams = copy.deepcopy(dict(run.hparams))  # the dataset adds items
    given_folder = as_text(data_dir)
    folder = given_folder or run.args.get("data_dir")
    is_harness = host_lookup.is_carft_harness()
    try:
        dataset = _make_dataset(run, given_folder, hparams, is_augmented, is_harness)
        job_splits = _split_as_trained(run, dataset)
        last_step = int(run.args.get("steps") or dataset.N_STEPS) - 1
    except Exception as error:  # a host's class and untrusted settings can raise any type
        reason = " ".join(str(error).split()) or type(error).__name__
        source = f" from {folder}" if folder else ""
        raise CarftError(
            f"the dataset {run.args.get('dataset')} of {run.path} cannot be read{source} and split "
            f"as in training: {reason}. Pass the location of the data as --data_dir; for your own "
            "data, the data folder itself"
        ) from error

    plan = run.image_plan if is_harness else None
    facts = getattr(dataset, "dataset_facts", None) or NO_FACTS
    require_same_data(run, dataset, targets, facts)
    names = [environment.name for environment in facts.environments]
    if len(names) != len(dataset):  # the host's dataset has no names
        names = [str(number) for number in range(len(dataset))]

    # The same key as in `train`: seed, step, number of the split, and number of the image.
    step = last_step if run.step is None else run.step
    key = (seed % SEEDS, 0 if run.algorithm.is_constant else step)
    numbers = {split.name: number for number, split in enumerate(job_splits)}
    kinds = host_lookup.get_evaluated_kinds(dataset)
    evaluated_splits = []
    for split in select_evaluated(job_splits, kinds):
        items = _KeyedItems(split.items, (*key, numbers[split.name]), plan)
        evaluated_splits.append(
            ImageSet(
                name=split.name,
                environment=names[split.environment],
                is_target=split.environment in targets,
                items=items,
                number=split.environment,
                squares=items.squares,
            )
        )
    return JobData(dataset, evaluated_splits, plan)


def require_same_data(run: Run, dataset: Any, targets: Sequence[int], facts: DatasetFacts) -> None:
    """Raise CarftError, with both values, if the data differs from the run's training data."""
    domains = run.content["model_num_domains"] + len(targets)
    # Name, value in training, and value now.
    comparisons: list[tuple[str, Any, Any]] = [
        ("environments", domains, len(dataset)),
        ("classes", len(run.classes), dataset.num_classes),
    ]
    if parse_dataset_name(run.hparams["class_names"]) is not None:
        for environment in facts.environments:
            if environment.classes:
                names = [prompts.clean(name) for name in environment.classes]
                comparisons.append(("classes", run.classes, names))

    edition = run.hparams.get("data_edition", "")
    if facts.edition and edition not in ("", UNVERIFIED):
        comparisons.append(("data_edition", edition, facts.edition))

    normalisation = facts.normalisation
    if normalisation:
        model_input = run.algorithm.input
        input_now = CLIPInput(model_input.preprocessing, *normalisation)
        comparisons.append(("normalisation", _round_input(model_input), _round_input(input_now)))

    for name, before, now in comparisons:
        if before != now:
            if not isinstance(before, str):
                before, now = trim_differences(before, now)
            raise CarftError(
                f"the dataset {run.args['dataset']} is not what {run.path} was trained on: {name} "
                f"{before} then, {now} now. Restore the data, or pass its location as --data_dir"
            )


def _round_input(model_input: CLIPInput) -> list[list[float]]:
    """Return scale and shift of an input, to four decimals."""
    return [
        [round(value, 4) for value in buffer.flatten().tolist()] for buffer in model_input.buffers()
    ]


def _split_as_trained(run: Run, dataset: Any) -> list[Split]:
    """Return all splits of the run's job; raises ValueError if a target does not exist."""
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


def get_step(run: Run, data_dir: str | None = None) -> int | None:
    """Return the step of the run's weights, or None if it is unknown or the run is a soup."""
    if run.soup is not None or run.step is not None:
        return run.step

    steps = run.args.get("steps")
    if not steps:
        with contextlib.suppress(Exception):  # missing data or an unexpected class of the host
            steps = _find_dataset_class(run, data_dir).N_STEPS
    return steps - 1 if type(steps) is int else None


def _make_dataset(
    run: Run, data_dir: str | None, hparams: dict[str, Any], is_augmented: bool, is_harness: bool
) -> Any:
    """Make the run's dataset with the run's seed; raises whatever its class raises."""
    dataset_class = _find_dataset_class(run, data_dir)
    unaugmented = run.args["test_envs"]
    if not is_augmented:
        unaugmented = list(range(run.content["model_num_domains"] + len(unaugmented)))
    with rng.preserve_states():  # the dataset can draw random numbers
        rng.reseed(run.args.get("seed", 0))
        folder = data_dir or run.args.get("data_dir")
        build = dataset_class
        if is_harness:
            plan = run.image_plan
            model_input = None
            if plan.is_for_model:  # its images were normalised for the run's model
                model_input = Preprocessing(
                    plan.size, plan.interpolation, plan.resize, plan.mean, plan.std
                )
            build = functools.partial(dataset_class.for_job, model_input=model_input)
        dataset = build(folder, unaugmented, hparams)

    if data_dir and not os.path.exists(data_dir):  # the dataset reads no folder
        raise CarftError(f"there is no folder {data_dir}")
    return dataset


def _find_dataset_class(run: Run, data_dir: str | None) -> Any:
    """Return the host's class of the run's dataset, or for your own data a class for its folder."""
    from domainbed import datasets

    name = run.args["dataset"]
    if data_dir and name not in vars(datasets):
        if not os.path.exists(data_dir):
            raise CarftError(f"there is no folder {data_dir}")
        name = data_dir
    return host_lookup.find_dataset_class(name)


def get_environment_positions(split: ImageSet) -> list[int]:
    """Return the positions in its environment of the images of a split from `read_data`."""
    items = split.items.host_items
    positions = list(range(len(items)))
    while hasattr(items, "underlying_dataset"):  # upstream's attribute of a part of a dataset
        positions = [items.keys[position] for position in positions]
        items = items.underlying_dataset
    return positions


def hash_images(environment: Any, positions: Sequence[int]) -> str:
    """Return a SHA-256 of the images of an environment at these positions, in order.

    The digest covers path, label, size and modification time of image files, the values of tensors,
    and for other datasets the labels and the number of images. Raises OSError if a file is missing.
    """
    digest = hashlib.sha256()
    for line in _describe_images(environment, positions):
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def _describe_images(environment: Any, positions: Sequence[int]) -> Iterator[str]:
    samples = getattr(environment, "samples", None)
    if samples is not None:
        root = str(getattr(environment, "root", ""))
        for position in positions:
            path, label = samples[position]
            file = os.stat(path)
            yield f"{path.removeprefix(root)} {file.st_size} {file.st_mtime_ns} {label}"
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


class _KeyedItems(Dataset[Any]):
    """Items whose random numbers depend only on ``key`` and on the item's position.

    Attributes:
        host_items: the host's dataset: an environment or a part of one.
        squares: the images before their second stage, see `ImageSet`.

    Args:
        items: the host's dataset.
        key: numbers of the job, the step and the split.
        plan: plan of the job's images; None on a host other than the harness.
    """

    def __init__(self, items: Any, key: tuple[int, ...], plan: ImagePlan | None) -> None:
        self.host_items = items
        self.squares: Squares | None = None
        self._key = key
        # The seed of the harness's `lib/fast_data_loader.py`; other hosts do not draw by a key.
        self._make_seed = misc.seed_hash if plan is None else rng.derive_seed
        self._source = None
        if plan is None or plan.mode != FAST:
            return

        from domainbed.lib.fast_data_loader import find_source

        self._source = source = find_source(items)
        if source is not None and not source.plan.is_random:
            samples = source.samples
            if source.positions is not None:
                samples = [samples[position] for position in source.positions]
            self.squares = Squares(samples, source.plan, accepts_truncated=True)

    def __len__(self) -> int:
        return len(self.host_items)

    def __getitem__(self, position: int) -> Any:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[Any]:
        with rng.preserve_states():
            if self._source is None:
                return [self._read_host_item(position) for position in positions]
            requests = [(0, position, (*self._key, position)) for position in positions]
            batch = self._source.read(requests)
        images = stages.second_stage(batch.plan, batch.images, batch.choices)
        return list(zip(images, batch.labels))

    def _read_host_item(self, position: int) -> Any:
        rng.reseed(int(self._make_seed(*self._key, position)))
        return self.host_items[position]
