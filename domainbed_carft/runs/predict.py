"""The classes and contexts of a user's pictures, as a run predicts them."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets.folder import IMG_EXTENSIONS

from domainbed_carft.data import picture_files
from domainbed_carft.errors import CarftError
from domainbed_carft.pictures.transforms import PlanTransform
from domainbed_carft.runs import BATCH_SIZE
from domainbed_carft.runs.measuring import LoadingOptions, worker_count
from domainbed_carft.runs.saved import TrainedRun
from domainbed_carft.text import progress

# A path, a Pillow picture, or a tensor (3, H, W).
Picture = Any


@dataclass(frozen=True)
class Predictions:
    """Probabilities of N pictures, float64, on the CPU; each row sums to 1.

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
class PicturePrediction:
    """The probabilities of one picture by name, or the ``error`` why it was skipped."""

    path: str
    classes: Mapping[str, float]
    contexts: Mapping[str, float]
    error: str = ""

    def as_dict(self, top: int | None = None) -> dict[str, Any]:
        """For JSON: the ``top`` most likely classes and contexts; by default all, unsorted."""
        if self.error:
            return {"path": self.path, "error": self.error}
        return {
            "path": self.path,
            "classes": most_likely(self.classes, top),
            "contexts": most_likely(self.contexts, top),
        }


def most_likely(probabilities: Mapping[str, float], top: int | None) -> dict[str, float]:
    """The ``top`` largest probabilities, the largest first; all, in their own order, for None."""
    if not top:
        return dict(probabilities)
    by_probability = sorted(probabilities.items(), key=lambda item: -item[1])
    return dict(by_probability[:top])


def predict(
    run: TrainedRun, pictures: Picture | Sequence[Picture], batch_size: int = BATCH_SIZE
) -> Predictions:
    """Class and context probabilities of some pictures, on the device that the run is on.

    ``pictures``: one or several of paths, Pillow pictures, and uint8 tensors (3, H, W) with values
    from 0 to 255; or a uint8 tensor (N, 3, H, W). All of these go through the run's test transform.
    Floating-point tensors are taken as they are, so they have to be transformed already, as
    `picture_transform` does.

    Raises CarftError for a picture that cannot be read, and if there is none.
    """
    is_single = isinstance(pictures, (str, os.PathLike, Image.Image))
    items = [pictures] if is_single else list(pictures)
    if not items:
        raise CarftError("there are no pictures to predict; give at least one")

    transform = picture_transform(run)
    device = run.algorithm.context_weights.device
    batches = []
    for start in range(0, len(items), batch_size):
        tensors = [_as_input(transform, item) for item in items[start : start + batch_size]]
        batches.append(predict_batch(run, torch.stack(tensors).to(device)))

    return Predictions(
        class_probabilities=torch.cat([batch.class_probabilities for batch in batches]),
        context_probabilities=torch.cat([batch.context_probabilities for batch in batches]),
        classes=batches[0].classes,
        contexts=batches[0].contexts,
    )


def _as_input(transform: Callable[[Any], Tensor], picture: Picture) -> Tensor:
    """The model's input (3, H, W) for a picture as `predict` takes it."""
    if isinstance(picture, (str, os.PathLike)):
        path = os.fspath(picture)
        prediction_input = _read_picture(transform, path)
        if isinstance(prediction_input, str):
            raise CarftError(f"{path} cannot be read: {prediction_input}")
        return prediction_input

    if isinstance(picture, Image.Image):
        return transform(picture.convert("RGB"))

    if not isinstance(picture, Tensor) or picture.ndim != 3 or picture.shape[0] != 3:
        shape = tuple(picture.shape) if isinstance(picture, Tensor) else type(picture).__name__
        raise CarftError(
            f"a picture is {shape}; expected a path, a Pillow picture, a tensor (3, H, W) or "
            "(N, 3, H, W)"
        )
    if picture.is_floating_point():
        return picture
    if picture.dtype != torch.uint8:
        raise CarftError(
            f"a picture is a tensor of {picture.dtype}; expected uint8 from 0 to 255, or floats "
            "that are transformed already"
        )
    return transform(transforms.functional.to_pil_image(picture))


def predict_batch(run: TrainedRun, batch: Tensor) -> Predictions:
    """The predictions of a batch (N, 3, H, W) that is transformed and on the run's device."""
    algorithm = run.algorithm
    with torch.no_grad():
        features = algorithm.features(batch)  # once for both
        class_probabilities = algorithm.class_logits(features).double().softmax(dim=1)
        context_probabilities = algorithm.context_logits(features).double().softmax(dim=1)

    return Predictions(
        class_probabilities.cpu(), context_probabilities.cpu(), _distinct_names(run), run.contexts
    )


def _distinct_names(run: TrainedRun) -> list[str]:
    """The classes; two folders may be read as the same words, then their labels are added."""
    times = Counter(run.classes)
    return [
        name if times[name] == 1 else f"{name} (label {label})"
        for label, name in enumerate(run.classes)
    ]


def predict_files(
    run: TrainedRun, paths: Sequence[str], options: LoadingOptions
) -> Iterator[list[PicturePrediction]]:
    """The predictions for picture files, batch by batch, in order, with only a few in memory.

    A file that cannot be read has an ``error`` instead of probabilities.
    """
    run.algorithm.to(options.device)
    read = functools.partial(_read_pictures, picture_transform(run))
    loader: DataLoader[Any] = DataLoader(
        paths,  # type: ignore[arg-type]
        options.batch_size,
        num_workers=options.workers or 0,
        collate_fn=read,
    )
    for batch in progress(loader, unit="batch", description="predicting", delay=2):
        yield list(_batch_predictions(run, batch, options.device))


def _batch_predictions(
    run: TrainedRun, batch: Sequence[tuple[str, Tensor | str]], device: torch.device
) -> Iterator[PicturePrediction]:
    readable = [picture for _, picture in batch if isinstance(picture, Tensor)]
    rows: Iterator[tuple[list[float], list[float]]] = iter(())
    if readable:
        predictions = predict_batch(run, torch.stack(readable).to(device))
        rows = zip(
            predictions.class_probabilities.tolist(), predictions.context_probabilities.tolist()
        )

    for path, picture in batch:
        if isinstance(picture, str):
            yield PicturePrediction(path, {}, {}, error=picture)
            continue
        class_row, context_row = next(rows)
        yield PicturePrediction(
            path,
            classes=dict(zip(predictions.classes, class_row)),
            contexts=dict(zip(predictions.contexts, context_row)),
        )


def find_pictures(paths: Iterable[str]) -> Iterator[str]:
    """The pictures in ``paths``: files as given, folders searched recursively, sorted.

    In folders, pictures are the files with one of torchvision's IMG_EXTENSIONS; a folder without
    any is returned itself.
    """
    for path in paths:
        pictures: list[str] = []
        for folder, subfolders, names in os.walk(path):
            subfolders.sort()
            for name in sorted(names):
                if name.lower().endswith(IMG_EXTENSIONS):
                    pictures.append(os.path.join(folder, name))

        yield from pictures or [path]


def default_workers(paths: Iterable[str], workers: int | None) -> int:
    """How many processes load ``paths``: ``workers``, else one per core if there is a folder."""
    return worker_count(workers, has_many_pictures=any(map(os.path.isdir, paths)))


def picture_transform(run: TrainedRun) -> Callable[[Any], Tensor]:
    """The transform of the run's test pictures, from a Pillow picture to a tensor (3, S, S).

    Of the protocol ``host`` only the normalisation is recorded; its pictures are squeezed to a
    square, as DomainBed's are.
    """
    return PlanTransform(run.picture_plan.without_augmentation())


def _read_pictures(
    transform: Callable[[Any], Tensor], paths: Sequence[str]
) -> list[tuple[str, Tensor | str]]:
    return [(path, _read_picture(transform, path)) for path in paths]


def _read_picture(transform: Callable[[Any], Tensor], path: str) -> Tensor | str:
    """A file as DomainBed reads it, as RGB, but no file that is cut off; else why there is none."""
    try:
        with picture_files.refuse_truncated_files():
            return transform(picture_files.open_picture(path))
    except IsADirectoryError:
        return f"no pictures in this folder ({', '.join(IMG_EXTENSIONS)})"
    except UnidentifiedImageError:
        return "not an image Pillow can read"
    except Exception as error:  # of Pillow's decoders, half a dozen types
        reason = getattr(error, "strerror", None) or str(error)
        return " ".join(reason.split()) or type(error).__name__
