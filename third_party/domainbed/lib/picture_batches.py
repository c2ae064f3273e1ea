"""Batches of pictures in two stages: each picture in a loader process, then the batch.

For the environments that `image_folders` reads; equal by rounding to upstream's transforms.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder

from domainbed.lib import image_folders
from domainbed_carft.data import listing
from domainbed_carft.pictures import loading, plan, rng, store
from domainbed_carft.pictures.plan import Plan
from domainbed_carft.pictures.store import Store

PATHS = ("fast", "pillow")
UPSTREAMS_SIZE = 224  # px

# Pixels a side, and mean and standard deviation of [0, 1] a channel.
ModelInput: TypeAlias = tuple[int, tuple[float, ...], tuple[float, ...]]


class UnfinishedBatch(NamedTuple):
    """A batch before its second stage: `pictures` (N, S, S, 3) are uint8, `drawn` is (N, 10)."""

    plan: Plan
    pictures: torch.Tensor
    drawn: torch.Tensor
    labels: torch.Tensor

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The pictures, (N, 3, S, S), float32 and normalised, and the labels."""
        return plan.second_stage(self.plan, self.pictures, self.drawn), self.labels


@dataclass(frozen=True)
class Pictures:
    """How a job gets its pictures."""

    description: str = ""  # that in the records' words; "" where there are none that are read here
    # What applies the colour jitter, "torch", "numba" or "pillow"; None: the data set's transforms.
    jitter: str | None = None
    store: Store | None = None  # where decoded pictures are kept
    # How the model wants them, in place of upstream's size and of the normalisation.
    model_input: ModelInput | None = None

    def source(self, dataset: Any) -> Source | None:
        """How to read the data set, or a part of one; None if that is its own affair."""
        whole, positions = dataset, None
        while isinstance(whole, Subset):
            inner = whole.indices
            positions = inner if positions is None else [inner[position] for position in positions]
            whole = whole.dataset
        if self.jitter is None or not image_folders.is_image_folder(whole):
            return None
        planned = plan.plan_of(whole.transform, "pillow" if self.jitter == "pillow" else "batch")
        if planned and self.model_input:
            size, mean, std = self.model_input
            size = size if planned.size == UPSTREAMS_SIZE else planned.size
            planned = planned._replace(size=size, mean=mean, std=std)
        return planned and Source(whole, positions, planned, self)


_FOR_THE_MODEL = ", normalised for the model"


def pictures_from_description(told: Any, wanted: ModelInput) -> Pictures:
    """How a job got its pictures, by the words in its file of weights; nothing is kept."""
    words = str(told).removesuffix(_FOR_THE_MODEL)
    fast, _, jitter = words.partition(", jitter by ")
    if fast != "fast":
        return Pictures()
    return Pictures(str(told), jitter, model_input=None if words == told else wanted)


def choose(
    path: str,
    cache: str | None,
    dataset: Any,
    ask_model: Callable[[], ModelInput | None] | None = None,
) -> Pictures:
    """How a job gets the pictures of its data set, whose `input_shape` may change; prints a line.

    `path` is one of PATHS, `cache` as --picture_cache has it; `ask_model` gives what the algorithm's
    class wants of them, asked only if they can be so.
    """
    jitter = plan.jitter_path("cuda" if torch.cuda.is_available() else "cpu")
    fast = Pictures(f"fast, jitter by {jitter}", jitter)
    sources = [source for environment in dataset if (source := fast.source(environment))]
    if not sources:
        return Pictures()
    if path == "pillow":
        return Pictures("pillow")
    if ask_model and len(sources) == len(dataset) and (wanted := ask_model()):
        fast = replace(fast, description=fast.description + _FOR_THE_MODEL, model_input=wanted)
        source = fast.source(dataset[0])
        dataset.input_shape = (3, source.plan.size, source.plan.size)
    kept, told = store.open_store(cache, os.path.dirname(sources[0].folder.root))
    print(f"Pictures: {fast.description}; {told}")
    return replace(fast, store=kept)


@dataclass(frozen=True)
class Source:
    """An environment, or a part of it, whose pictures are read by a plan."""

    folder: ImageFolder
    positions: Sequence[int] | None
    plan: Plan
    pictures: Pictures

    def batch(self, requests: Sequence[tuple[int, int, tuple[int, ...]]]) -> Any:
        """Read a batch; the second stage comes at once where a GPU does not do it."""
        load = functools.partial(loading.load, self.plan, kept=self.pictures.store)
        pictures, drawn, labels = [], [], []
        for _, position, key in requests:
            if self.positions is not None:
                position = self.positions[position]
            path, label = self.folder.samples[position]
            if self.plan.draws:  # from this generator, as transforms do
                torch.default_generator.manual_seed(rng.seed_of(*key))
            picture, numbers = listing.read_picture(load, path)
            pictures.append(picture)
            drawn.append(numbers)
            labels.append(label)
        half = UnfinishedBatch(
            self.plan, torch.stack(pictures), torch.stack(drawn), torch.tensor(labels)
        )
        return half if self.pictures.jitter == "torch" else half.finish()
