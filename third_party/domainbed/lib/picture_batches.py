"""Batches of pictures in two stages: each picture in a loader process, then the batch.

For the environments that `image_folders` reads; equal by rounding to upstream's transforms.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder

from domainbed.lib import image_folders
from domainbed_carft.data import picture_files
from domainbed_carft.pictures import loading, plan, rng, store_folder
from domainbed_carft.pictures.plan import Plan
from domainbed_carft.pictures.store import Store

PATHS = ("fast", "pillow")
UPSTREAMS_SIZE = 224  # px

# The parts of a description; records and files of weights have it.
_JITTER_PART = ", jitter by "
_MODEL_PART = ", normalised for the model"


class ModelInput(NamedTuple):
    """The pictures that a model takes, in place of upstream's size and normalisation."""

    size: int  # px a side
    mean: tuple[float, ...]  # of [0, 1], a channel
    std: tuple[float, ...]


class UnfinishedBatch(NamedTuple):
    """A batch before its second stage."""

    plan: Plan
    pictures: torch.Tensor  # (N, S, S, 3), uint8
    choices: torch.Tensor  # (N, 10), as `plan.first_stage` returns them
    labels: torch.Tensor  # (N,)

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The pictures, (N, 3, S, S), float32 and normalised, and the labels, (N,)."""
        return plan.second_stage(self.plan, self.pictures, self.choices), self.labels


@dataclass(frozen=True)
class Pictures:
    """How a job gets its pictures."""

    # As records have it; "" if the data set's own transforms make the pictures.
    description: str = ""
    # What applies the colour jitter, "torch", "numba" or "pillow"; None: the data set's transforms.
    jitter: str | None = None
    store: Store | None = None  # of decoded pictures
    model_input: ModelInput | None = None

    def source(self, dataset: Any) -> Source | None:
        """How to read a data set, or a part of one; None if its own transforms do that."""
        whole_dataset = dataset
        positions = None
        while isinstance(whole_dataset, Subset):
            inner = whole_dataset.indices
            positions = inner if positions is None else [inner[position] for position in positions]
            whole_dataset = whole_dataset.dataset
        if self.jitter is None or not image_folders.is_image_folder(whole_dataset):
            return None

        jitter_stage = "pillow" if self.jitter == "pillow" else "batch"
        picture_plan = plan.plan_of(whole_dataset.transform, jitter_stage)
        if picture_plan is None:
            return None
        if self.model_input:
            size, mean, std = self.model_input
            size = size if picture_plan.size == UPSTREAMS_SIZE else picture_plan.size
            picture_plan = picture_plan._replace(size=size, mean=mean, std=std)
        return Source(whole_dataset, positions, picture_plan, self)


def pictures_from_description(description: Any, model_input: Sequence[Any]) -> Pictures:
    """How a job got its pictures, by the description in its file of weights; without a store.

    `model_input` has the fields of ModelInput. It counts only if the description says so.
    """
    transforms = str(description).removesuffix(_MODEL_PART)
    is_for_model = transforms != description
    path, _, jitter = transforms.partition(_JITTER_PART)
    if path != "fast":
        return Pictures()
    return Pictures(
        description=str(description),
        jitter=jitter,
        model_input=ModelInput(*model_input) if is_for_model else None,
    )


def choose(
    path: str,
    cache: str | None,
    dataset: Any,
    ask_model: Callable[[], Sequence[Any] | None] | None = None,
) -> Pictures:
    """How a job gets the pictures of its data set; prints a line about it.

    `path` is one of PATHS, `cache` the value of --picture_cache. `ask_model` returns the fields of
    a ModelInput, or None; it is called only if all environments can be read so, and then changes
    the data set's `input_shape`. Raises CarftError if `cache` is no size.
    """
    jitter = plan.jitter_path("cuda" if torch.cuda.is_available() else "cpu")
    pictures = Pictures(f"fast{_JITTER_PART}{jitter}", jitter)
    sources = [source for source in map(pictures.source, dataset) if source]
    if not sources:
        return Pictures()
    if path == "pillow":
        return Pictures("pillow")

    model_input = ask_model() if ask_model and len(sources) == len(dataset) else None
    if model_input:
        pictures = replace(
            pictures,
            description=pictures.description + _MODEL_PART,
            model_input=ModelInput(*model_input),
        )
        source = pictures.source(dataset[0])
        assert source is not None, "the environments have plans, whatever their size"
        dataset.input_shape = (3, source.plan.size, source.plan.size)

    data_folder = os.path.dirname(sources[0].folder.root)
    store, store_line = store_folder.open_store(cache, data_folder)
    print(f"Pictures: {pictures.description}; {store_line}")
    return replace(pictures, store=store)


@dataclass(frozen=True)
class Source:
    """An environment, or a part of it, whose pictures are read by a plan."""

    folder: ImageFolder
    positions: Sequence[int] | None  # of the part's items in the environment; None for all
    plan: Plan
    pictures: Pictures

    def batch(self, requests: Sequence[tuple[int, int, tuple[int, ...]]]) -> Any:
        """Read a batch: pictures (N, 3, S, S) and labels (N,).

        An UnfinishedBatch where a GPU does the second stage. Raises PassingError for a picture that
        cannot be read.
        """
        load = functools.partial(loading.load, self.plan, cache=self.pictures.store)
        squares = []
        choices = []
        labels = []
        for _, position, key in requests:
            if self.positions is not None:
                position = self.positions[position]
            path, label = self.folder.samples[position]
            if self.plan.draws:  # from this generator, as transforms do
                torch.default_generator.manual_seed(rng.seed_of(*key))
            square, square_choices = picture_files.read_picture(load, path)
            squares.append(square)
            choices.append(square_choices)
            labels.append(label)

        batch = UnfinishedBatch(
            self.plan, torch.stack(squares), torch.stack(choices), torch.tensor(labels)
        )
        return batch if self.pictures.jitter == "torch" else batch.finish()
