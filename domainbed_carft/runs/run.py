"""A trained run: everything that its weights file holds, and its predictions for images."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets.folder import IMG_EXTENSIONS

from domainbed_carft.arguments import COUNT, check
from domainbed_carft.data import image_files
from domainbed_carft.errors import CarftError
from domainbed_carft.images.plan import ImagePlan
from domainbed_carft.images.protocols import read_plan
from domainbed_carft.images.transforms import PlanTransform
from domainbed_carft.method.algorithm import CLIPAlgorithm
from domainbed_carft.runs import BATCH_SIZE
from domainbed_carft.text import quantity

# A path, a Pillow image, or a tensor (3, H, W).
ImageInput = Any


@dataclass(frozen=True)
class Predictions:
    """Probabilities of N images, float64, on the CPU; each row sums to 1.

    ``class_probabilities``: (N, K), over ``classes``. ``context_probabilities``: (N, M), over
    ``contexts``, the templates such as "a sketch of a {}.". Where two classes have the same name,
    their labels are added.
    """

    class_probabilities: Tensor
    context_probabilities: Tensor
    classes: list[str]
    contexts: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The names, and the probabilities as nested lists."""
        return {
            "classes": self.classes,
            "contexts": self.contexts,
            "class_probabilities": self.class_probabilities.tolist(),
            "context_probabilities": self.context_probabilities.tolist(),
        }


@dataclass(frozen=True)
class Run:
    """A trained run of one of our algorithms, ready to predict; `load_run` makes it.

    ``path``: the weights file. ``algorithm``: a torch module in eval mode. ``classes``: the names
    of the K classes as prompts have them, in label order; ``contexts``: the M templates, such as "a
    sketch of a {}.". ``hparams``: of the run, and the facts of its job. ``step``: after which the
    weights were saved, None for the run's last. ``alpha``: of ``carft wise-ft``, else None.
    ``content``: what the file holds besides weights. ``soup``: of ``carft soup``, how it was made
    (as `runs.soup` writes it), else None; a soup has neither seed nor step.
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
        """Where the run predicts."""
        return self.algorithm.context_weights.device

    @property
    def image_plan(self) -> ImagePlan:
        """How the job made its training images; its test images are without augmentation."""
        return read_plan(self.content, self.algorithm.input)

    @property
    def title(self) -> str:
        """Its algorithm; of a soup the number of its runs and their algorithms."""
        if self.soup is None:
            return str(self.args["algorithm"])

        members = self.soup["members"]
        if not members:
            return "soup"
        names = sorted({member["algorithm"] for member in members})
        return f"soup of {quantity(len(members), 'run')} ({', '.join(names)})"

    @property
    def distinct_classes(self) -> list[str]:
        """The classes; those that two folders share, since they are read as the same words, with
        their labels.
        """
        times = Counter(self.classes)
        return [
            name if times[name] == 1 else f"{name} (label {label})"
            for label, name in enumerate(self.classes)
        ]

    def transform(self) -> Callable[[Any], Tensor]:
        """The transform of the run's test images, from a Pillow image to a tensor (3, S, S).

        Of the protocol ``host`` only the normalisation is recorded; its images are squeezed to a
        square, as DomainBed's are.
        """
        return PlanTransform(self.image_plan.without_augmentation())

    def predict(
        self, images: ImageInput | Sequence[ImageInput], batch_size: int = BATCH_SIZE
    ) -> Predictions:
        """Class and context probabilities of one or several images, on the run's device.

        ``images``: paths, Pillow images, and uint8 tensors (3, H, W) or (N, 3, H, W) from 0 to
        255, which all go through the run's test transform. Floating-point tensors are taken as they
        are: transform them first, as `Run.transform` does.

        Raises CarftError for an image that cannot be read, and if there is none.

        >>> predictions = load_run(job).predict([image, image])
        >>> predictions.class_probabilities.shape
        torch.Size([2, 2])
        >>> predictions.class_probabilities.sum(dim=1).round(decimals=6).tolist()
        [1.0, 1.0]
        >>> sorted(predictions.as_dict())
        ['class_probabilities', 'classes', 'context_probabilities', 'contexts']
        """
        check(COUNT, batch_size=batch_size)
        is_several = isinstance(images, Iterable) and not isinstance(images, str)
        items = [*images] if is_several else [images]
        if not items:
            raise CarftError("there are no images to predict; give at least one")

        batches = []
        for batch in self.predicted_batches(items, batch_size):
            for image, error in zip(batch.images, batch.errors):
                if error:
                    raise CarftError(f"{os.fspath(image)} cannot be read: {error}")
            batches.append(batch.predictions)
        return Predictions(
            class_probabilities=torch.cat([part.class_probabilities for part in batches]),
            context_probabilities=torch.cat([part.context_probabilities for part in batches]),
            classes=self.distinct_classes,
            contexts=self.contexts,
        )

    def predicted_batches(
        self, images: Sequence[ImageInput], batch_size: int, workers: int = 0
    ) -> Iterator[PredictedBatch]:
        """The predictions of images as `predict` takes them, with only a few in memory.

        ``workers``: how many processes read them.
        """
        loader: DataLoader[Any] = DataLoader(
            images,  # type: ignore[arg-type]
            batch_size,
            num_workers=workers,
            collate_fn=functools.partial(_read_batch, self.transform()),
            generator=torch.Generator(),  # torch's own stays as it is
        )
        for batch in loader:
            inputs = [part for _, part in batch if isinstance(part, Tensor)]
            yield PredictedBatch(
                images=[image for image, _ in batch],
                errors=[part if isinstance(part, str) else "" for _, part in batch],
                predictions=self._predict_inputs(inputs),
            )

    @torch.no_grad()
    def _predict_inputs(self, inputs: list[Tensor]) -> Predictions:
        """The predictions of transformed images (3, S, S); there may be none."""
        classes = torch.empty(0, len(self.classes), dtype=torch.float64)
        contexts = torch.empty(0, len(self.contexts), dtype=torch.float64)
        if inputs:
            features = self.algorithm.features(torch.stack(inputs).to(self.device))
            classes = self.algorithm.class_logits(features).double().softmax(dim=1).cpu()
            contexts = self.algorithm.context_logits(features).double().softmax(dim=1).cpu()
            require_finite(classes.amax(dim=1))
        return Predictions(classes, contexts, self.distinct_classes, self.contexts)


def require_finite(values: Tensor) -> None:
    """Raise CarftError unless all ``values`` (N,), one for each of N images, are finite."""
    n_broken = int((~values.isfinite()).sum())
    if n_broken:
        raise CarftError(
            f"the weights are finite but overflow: {n_broken} of {len(values)} images of a batch "
            "have no finite logits. Did the training diverge? Use --which best, or train with a "
            "smaller lr"
        )


@dataclass(frozen=True)
class PredictedBatch:
    """Some images, why each could not be read ("" if it was), and predictions of the others."""

    images: Sequence[ImageInput]
    errors: Sequence[str]
    predictions: Predictions


def _read_batch(
    transform: Callable[[Any], Tensor], images: Sequence[ImageInput]
) -> list[tuple[ImageInput, Tensor | str]]:
    return [(image, _as_input(transform, image)) for image in images]


def _as_input(transform: Callable[[Any], Tensor], image: ImageInput) -> Tensor | str:
    """The model's input (3, S, S) for an image; of a file that cannot be read, why."""
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
        return image
    if image.dtype != torch.uint8:
        raise CarftError(
            f"an image is a tensor of {image.dtype}; expected uint8 from 0 to 255, or floats "
            "that are transformed already"
        )
    return transform(transforms.functional.to_pil_image(image))


def _read_image(transform: Callable[[Any], Tensor], path: str) -> Tensor | str:
    """A file as DomainBed reads it, as RGB, but no file that is cut off; else why there is none."""
    try:
        with image_files.refuse_truncated_files():
            return transform(image_files.open_image(path))
    except IsADirectoryError:
        return f"no images in this folder ({', '.join(IMG_EXTENSIONS)})"
    except UnidentifiedImageError:
        return "not an image Pillow can read"
    except Exception as error:  # of Pillow's decoders, half a dozen types
        reason = getattr(error, "strerror", None) or str(error)
        return " ".join(reason.split()) or type(error).__name__
