"""Pictures of a user's: found in folders, read one batch after another, the broken ones told."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from PIL import ImageFile, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets.folder import IMG_EXTENSIONS

from domainbed_carft.data.listing import open_picture
from domainbed_carft.method import pictures
from domainbed_carft.method import pictures as images
from domainbed_carft.runs.saved import Run


class Found(NamedTuple):
    """A picture to read, or a path and why there is none."""

    path: str
    problem: str = ""


class Batch(NamedTuple):
    """What was asked for, in order, and the pictures (n, 3, H, W) of those without a problem."""

    found: list[Found]
    pictures: Tensor


def find(paths: Iterable[str]) -> Iterator[Found]:
    """The pictures in ``paths``: files as they are, folders searched to the bottom, sorted.

    In folders a picture is what has one of torchvision's IMG_EXTENSIONS. Links are followed; no
    folder is read twice, so that links in a circle end. No more than one folder's names is held.
    """
    for path in paths:
        if not os.path.isdir(path):
            yield Found(path)
            continue
        empty = True
        for found in _below(path):
            empty = False
            yield found
        if empty:
            yield Found(path, f"no picture in this folder: no {', '.join(IMG_EXTENSIONS)}")


def _below(root: str) -> Iterator[Found]:
    problems: list[OSError] = []
    seen: set[tuple[int, int]] = set()
    for here, folders, files in os.walk(root, onerror=problems.append, followlinks=True):
        if _is_new(here, seen):
            for name in sorted(files):
                if name.lower().endswith(IMG_EXTENSIONS):
                    yield Found(os.path.join(here, name))
            folders.sort()
        else:
            folders.clear()
        yield from _told(problems)
    yield from _told(problems)


def _is_new(folder: str, seen: set[tuple[int, int]]) -> bool:
    try:
        entry = os.stat(folder)
    except OSError:  # gone meanwhile
        return False
    identity = (entry.st_dev, entry.st_ino)
    new = identity not in seen
    seen.add(identity)
    return new


def _told(problems: list[OSError]) -> Iterator[Found]:
    while problems:
        error = problems.pop()
        yield Found(str(error.filename), f"this folder cannot be read: {error.strerror}")


def read(
    found: Iterable[Found], transform: Callable[[Any], Tensor], batch_size: int, workers: int
) -> Iterator[Batch]:
    """Batches of pictures, read by ``workers`` processes; no more than a few at a time are held."""
    loader: DataLoader[Any] = DataLoader(
        _Pictures(transform),
        batch_sampler=_chunks(iter(found), batch_size),
        num_workers=workers,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
    )
    return iter(loader)


def _chunks(found: Iterator[Found], size: int) -> Iterator[list[Found]]:
    while chunk := list(itertools.islice(found, size)):
        yield chunk


def _as_it_is(batch: Batch) -> Batch:
    return batch


class _Pictures(Dataset[Any]):
    """Read as DomainBed reads them (torchvision's loader, hence RGB), but for cut-off files.

    DomainBed has Pillow fill these up with grey; a user wants to know.
    """

    def __init__(self, transform: Callable[[Any], Tensor]) -> None:
        self._transform = transform

    def __getitems__(self, found: Sequence[Found]) -> Batch:
        told, pictures = [], []
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            for one in found:
                if not one.problem:
                    picture, problem = self._picture(one.path)
                    pictures += [picture] if picture is not None else []
                    one = Found(one.path, problem)
                told.append(one)
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before
        return Batch(told, torch.stack(pictures) if pictures else torch.empty(0))

    def __getitem__(self, found: Found) -> Batch:
        return self.__getitems__([found])

    def _picture(self, path: str) -> tuple[Tensor | None, str]:
        """The picture, or why there is none."""
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would have us wait for ever
                return None, "no file"
            return self._transform(open_picture(path)), ""
        except UnidentifiedImageError:
            return None, "no picture of a kind that Pillow knows"
        except Exception as error:  # of Pillow's decoders, half a dozen types
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            return None, " ".join(reason.split()) or type(error).__name__


def transform_of(run: Run) -> tuple[Callable[[Any], Tensor], str]:
    """The transform of the run's test pictures, and in words what is done.

    Of the protocol ``host`` no more is recorded than the normalisation: its pictures are squeezed
    to a square as DomainBed's are.
    """
    size = run.input_shape[-1]
    name = run.hparams.get("protocol", "domainbed")
    if name in pictures.PRESETS:
        words = images.PROTOCOLS[name].partition("test: ")[2]
        return pictures.transform(name, size, augment=False), f"{words}, {size} px ({name})"
    mean, std = _normalisation(run.algorithm.input)
    steps = [
        transforms.Resize((size, size)),
        transforms.ToTensor(),
        transforms.Normalize(mean, std),
    ]
    words = images.PROTOCOLS["domainbed"].partition("test: ")[2]
    return transforms.Compose(steps), (
        f"{words}, {size} px, as DomainBed's are: the run was trained with transforms of its "
        "DomainBed's own, of which only the normalisation is recorded"
    )


def _normalisation(expected: images.CLIPInput) -> tuple[list[float], list[float]]:
    """Mean and deviation that the run's input undoes; the inverse of what CLIPInput folds."""
    mean, std = torch.tensor(images.CLIP_MEAN), torch.tensor(images.CLIP_STD)
    scale, shift = expected.scale.flatten(), expected.shift.flatten()
    return (shift * std + mean).tolist(), (scale * std).tolist()
