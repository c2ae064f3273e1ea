"""A trained run: the content of its weights file, its predictions and features of images."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets.folder import IMG_EXTENSIONS

from domainbed_carft.arguments import BATCH, WORKERS, require_kind
from domainbed_carft.data import image_files
from domainbed_carft.errors import CarftError
from domainbed_carft.images.plan import ImagePlan
from domainbed_carft.images.protocols import read_plan
from domainbed_carft.images.transforms import PlanTransform
from domainbed_carft.method.algorithm import CLIPAlgorithm
from domainbed_carft.runs import BATCH_SIZE
from domainbed_carft.wording import quantity

# A path, a Pillow image, or a tensor (3, H, W).
ImageInput = Any


@dataclass(frozen=True)
class Predictions:
    """Class and context probabilities of N images, in float64 on the CPU; each row sums to 1.

    Attributes:
        class_probabilities: (N, K), probabilities of the ``classes``.
        context_probabilities: (N, M), probabilities of the ``contexts``.
        classes: names of the K classes; if several have the same name, the label is added.
        contexts: the M context templates, such as "a sketch of a {}.".
    """

    class_probabilities: Tensor
    context_probabilities: Tensor
    classes: list[str]
    contexts: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the names and the probabilities, as nested lists."""
        return {
            "classes": self.classes,
            "contexts": self.contexts,
            "class_probabilities": self.class_probabilities.tolist(),
            "context_probabilities": self.context_probabilities.tolist(),
        }


@dataclass(frozen=True)
class Run:
    """A trained run of an algorithm of this package, ready to predict; created by `load_run`.

    Attributes:
        path: path of the weights file.
        algorithm: the model, a torch module in eval mode.
        args: arguments of the training, by name.
        hparams: hyperparameters, and facts of the job such as "clip_digest".
        classes: names of the K classes as used in prompts, in label order.
        contexts: the M context templates, such as "a sketch of a {}.".
        step: step after which the weights were saved, or None for the last step.
        alpha: alpha of weights saved by ``carft wise-ft``, otherwise None.
        content: content of the file without the weights.
        soup: description of a soup saved by ``carft soup``, otherwise None. A soup has neither
            seed nor step.
    """

    path: Path
    algorithm: CLIPAlgorithm
    args: Mapping[str, Any]
    hparams: Mapping[str, Any]
    classes: list[str]
    contexts: list[str]
    step: int | None
    alpha: float | None
    content: Mapping[str, Any]
    soup: Mapping[str, Any] | None = None

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.algorithm.context_weights.device

    @property
    def image_plan(self) -> ImagePlan:
        """The transform of the job's training images; test images have no augmentation."""
        return read_plan(self.content, self.algorithm.input)

    @property
    def title(self) -> str:
        """The algorithm, or for a soup the number of its runs and their algorithms."""
        if self.soup is None:
            return str(self.args["algorithm"])

        members = self.soup["members"]
        if not members:
            return "soup"
        names = sorted({member["algorithm"] for member in members})
        return f"soup of {quantity(len(members), 'run')} ({', '.join(names)})"

    @property
    def distinct_classes(self) -> list[str]:
        """The class names, with the label added to names that several folders share."""
        times = Counter(self.classes)
        return [
            name if times[name] == 1 else f"{name} (label {label})"
            for label, name in enumerate(self.classes)
        ]

    def transform(self) -> Callable[[Any], Tensor]:
        """Return the run's test transform.

        Runs with the protocol ``host`` record only their normalisation, so their images are
        squeezed to a square, like DomainBed's.

        Returns:
            A function from a Pillow image to a tensor (3, S, S).
        """
        return PlanTransform(self.image_plan.without_augmentation())

    def predict(
        self, images: ImageInput | Sequence[ImageInput], batch_size: int = BATCH_SIZE
    ) -> Predictions:
        """Predict the classes and contexts of one or several images.

        Args:
            images: a path, a Pillow image, a uint8 tensor (3, H, W) or (N, 3, H, W) from 0 to 255,
                or a sequence of paths, Pillow images and uint8 tensors (3, H, W). The test
                transform is applied to them. Floating-point tensors are used without changes, so
                apply `Run.transform` first.
            batch_size: images per batch.

        Returns:
            The probabilities of each image.

        Raises:
            CarftError: if an image cannot be read or is not finite, or there are no images.

        Examples:
            >>> predictions = load_run(job).predict([image, image])
            >>> predictions.class_probabilities.shape
            torch.Size([2, 2])
            >>> predictions.class_probabilities.sum(dim=1).round(decimals=6).tolist()
            [1.0, 1.0]
            >>> sorted(predictions.as_dict())
            ['class_probabilities', 'classes', 'context_probabilities', 'contexts']
        """
        parts = [self._predict_inputs(inputs) for inputs in self._read_inputs(images, batch_size)]
        return Predictions(
            class_probabilities=torch.cat([part.class_probabilities for part in parts]),
            context_probabilities=torch.cat([part.context_probabilities for part in parts]),
            classes=self.distinct_classes,
            contexts=self.contexts,
        )

    def features(
        self, images: ImageInput | Sequence[ImageInput], batch_size: int = BATCH_SIZE
    ) -> Tensor:
        """Return the image features of one or several images.

        The features are the output of the run's image encoder after its projection into the space
        shared by images and texts, like the output of CLIP's ``encode_image``. They are not
        normalised, while `predict` uses features of length 1, so normalise them before you compare
        them. The weights are the same as for `predict`.

        Args:
            images: images of the same kinds as for `predict`.
            batch_size: images per batch.

        Returns:
            Features (N, D) in float32 on the CPU, in the order of the images.

        Raises:
            CarftError: if an image cannot be read or is not finite, or there are no images.

        Examples:
            >>> load_run(job).features([image, image]).shape
            torch.Size([2, 128])
        """
        parts = [self._encode(inputs).cpu() for inputs in self._read_inputs(images, batch_size)]
        features = torch.cat(parts)
        require_finite(features.abs().amax(dim=1), "features")
        return features

    def predict_batches(
        self, images: Sequence[ImageInput], batch_size: int, workers: int = 0
    ) -> Iterator[PredictedBatch]:
        """Predict images batch by batch, with only a few batches in memory.

        Args:
            images: images of the same kinds as for `predict`.
            batch_size: images per batch.
            workers: number of processes that load images.

        Returns:
            An iterator over batches. An image that cannot be read has an error instead of a
            prediction.
        """
        require_kind(BATCH, batch_size=batch_size)
        require_kind(WORKERS, workers=workers)
        for batch in self._read_batches(images, batch_size, workers):
            inputs = [part.input for part in batch if part.input is not None]
            yield PredictedBatch(
                images=[part.image for part in batch],
                errors=[part.problem for part in batch],
                predictions=self._predict_inputs(inputs),
            )

    def _read_inputs(
        self, images: ImageInput | Sequence[ImageInput], batch_size: int
    ) -> Iterator[list[Tensor]]:
        """Yield batches of transformed images; raises CarftError as `predict` does."""
        require_kind(BATCH, batch_size=batch_size)
        items = [images]
        is_tensor_of_one = isinstance(images, Tensor) and images.ndim == 3
        if isinstance(images, Iterable) and not (isinstance(images, str) or is_tensor_of_one):
            items = [*images]
        if not items:
            raise CarftError("there are no images; pass at least one")

        for batch in self._read_batches(items, batch_size):
            for part in batch:
                if part.problem:
                    raise CarftError(f"{os.fspath(part.image)} cannot be read: {part.problem}")
            yield [part.input for part in batch if part.input is not None]

    def _read_batches(
        self, images: Sequence[ImageInput], batch_size: int, workers: int = 0
    ) -> Iterable[Sequence[_ReadImage]]:
        """Return batches of images that were read, or could not be."""
        return DataLoader(
            images,  # type: ignore[arg-type]
            batch_size,
            num_workers=workers,
            collate_fn=functools.partial(_read_batch, self.transform()),
            generator=torch.Generator(),  # leaves the state of torch's default generator unchanged
        )

    def _encode(self, inputs: list[Tensor]) -> Tensor:
        """Return the features (N, D) of transformed images (3, S, S), on the run's device."""
        with torch.no_grad():
            return self.algorithm.features(torch.stack(inputs).to(self.device))

    @torch.no_grad()
    def _predict_inputs(self, inputs: list[Tensor]) -> Predictions:
        """Predict a list of transformed images (3, S, S), which can be empty."""
        classes = torch.empty(0, len(self.classes), dtype=torch.float64)
        contexts = torch.empty(0, len(self.contexts), dtype=torch.float64)
        if inputs:
            features = self._encode(inputs)
            classes = self.algorithm.class_logits(features).double().softmax(dim=1).cpu()
            contexts = self.algorithm.context_logits(features).double().softmax(dim=1).cpu()
            require_finite(classes.amax(dim=1))
        return Predictions(classes, contexts, self.distinct_classes, self.contexts)


def require_finite(values: Tensor, name: str = "logits") -> None:
    """Raise CarftError unless all ``values`` (N,), one per image, are finite.

    Args:
        values: the values.
        name: what the model computed, for the message.
    """
    n_broken = int((~values.isfinite()).sum())
    if n_broken:
        raise CarftError(
            f"the weights are finite but overflow: {n_broken} of {len(values)} images "
            f"have non-finite {name}. Did the training diverge? Use --which best, or train with a "
            "smaller lr"
        )


@dataclass(frozen=True)
class PredictedBatch:
    """A batch of images and their predictions."""

    images: Sequence[ImageInput]
    errors: Sequence[str]  # reason why an image could not be read, or "", for each image
    predictions: Predictions  # of the images without an error


class _ReadImage(NamedTuple):
    """An image with the model's input (3, S, S), or the reason why its file cannot be read."""

    image: ImageInput
    input: Tensor | None
    problem: str = ""


class _UnreadableFileError(Exception):
    """The file of an image cannot be read, for a reason without its path."""


def _read_batch(
    transform: Callable[[Any], Tensor], images: Sequence[ImageInput]
) -> list[_ReadImage]:
    batch = []
    for image in images:
        try:
            batch.append(_ReadImage(image, _make_input(transform, image)))
        except _UnreadableFileError as error:
            batch.append(_ReadImage(image, None, str(error)))
    return batch


def _make_input(transform: Callable[[Any], Tensor], image: ImageInput) -> Tensor:
    """Return the model's input (3, S, S) for an image; raises as `_read_image` does."""
    if isinstance(image, (str, os.PathLike)):
        return _read_image(transform, os.fspath(image))
    if isinstance(image, Image.Image):
        return transform(image.convert("RGB"))

    if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] != 3:
        shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise CarftError(
            f"an image is {shape}; expected a path, a Pillow image, a tensor (3, H, W) or "
            "(N, 3, H, W)"
        )
    if image.is_floating_point():
        count = int((~image.isfinite()).sum())
        if count:
            raise CarftError(
                f"an image has {quantity(count, 'value')} that are not finite; expected finite "
                "floats, as Run.transform returns"
            )
        return image
    if image.dtype != torch.uint8:
        raise CarftError(
            f"an image is a tensor of {image.dtype}; expected uint8 from 0 to 255, or floats "
            "that are already transformed"
        )
    return transform(transforms.functional.to_pil_image(image))


def _read_image(transform: Callable[[Any], Tensor], path: str) -> Tensor:
    """Read and transform a file like DomainBed, except that truncated files are errors.

    Raises:
        _UnreadableFileError: with the reason.
    """
    try:
        with image_files.refuse_truncated_files():
            return transform(image_files.open_image(path))
    except IsADirectoryError as error:
        reason = f"no images in this folder ({', '.join(IMG_EXTENSIONS)})"
        raise _UnreadableFileError(reason) from error
    except UnidentifiedImageError as error:
        raise _UnreadableFileError("not an image Pillow can read") from error
    except Exception as error:  # Pillow's decoders raise half a dozen types
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
        raise _UnreadableFileError(reason or type(error).__name__) from error
