"""`carft predict`: the probabilities of classes and contexts for image files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchvision.datasets.folder import IMG_EXTENSIONS

from domainbed_carft.runs.run import Run


@dataclass(frozen=True)
class ImagePrediction:
    """Probabilities of the classes and contexts of one image, by name."""

    path: str
    classes: Mapping[str, float]
    contexts: Mapping[str, float]
    error: str = ""  # reason why the image was skipped

    def as_dict(self, top: int | None = None) -> dict[str, Any]:
        """Return the ``top`` most likely classes and contexts; by default all, unsorted."""
        if self.error:
            return {"path": self.path, "error": self.error}
        return {
            "path": self.path,
            "classes": get_most_likely(self.classes, top),
            "contexts": get_most_likely(self.contexts, top),
        }


def get_most_likely(probabilities: Mapping[str, float], top: int | None) -> dict[str, float]:
    """Return the ``top`` largest probabilities, largest first; None returns all, unsorted."""
    if not top:
        return dict(probabilities)
    by_probability = sorted(probabilities.items(), key=lambda item: -item[1])
    return dict(by_probability[:top])


def predict_files(
    run: Run, paths: Sequence[str], batch_size: int, workers: int
) -> Iterator[list[ImagePrediction]]:
    """Iterate over the predictions of image files, in order, with only a few batches in memory.

    A file that cannot be read has an ``error`` instead of probabilities.
    """
    for batch in run.predict_batches(paths, batch_size, workers):
        predictions = batch.predictions
        probabilities = zip(
            predictions.class_probabilities.tolist(), predictions.context_probabilities.tolist()
        )
        predicted = []
        for path, error in zip(batch.images, batch.errors):
            of_classes, of_contexts = ([], []) if error else next(probabilities)
            predicted.append(
                ImagePrediction(
                    path=path,
                    classes=dict(zip(predictions.classes, of_classes)),
                    contexts=dict(zip(predictions.contexts, of_contexts)),
                    error=error,
                )
            )
        yield predicted


def find_images(paths: Iterable[str]) -> Iterator[str]:
    """Iterate over the given files and, sorted, over the images in the given folders.

    In folders, images are the files with one of torchvision's IMG_EXTENSIONS. A folder without
    images is returned itself, so that it is reported.
    """
    for path in paths:
        images: list[str] = []
        for folder, subfolders, names in os.walk(path):
            subfolders.sort()
            for name in sorted(names):
                if name.lower().endswith(IMG_EXTENSIONS):
                    images.append(os.path.join(folder, name))

        yield from images or [path]
