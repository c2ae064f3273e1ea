"""`carft predict`: classes and contexts of a user's pictures, one line each, as they are read."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from domainbed_carft import files, machine
from domainbed_carft.data import listing
from domainbed_carft.method import pictures
from domainbed_carft.runs import saved, splits
from domainbed_carft.text import shown

SOME_SKIPPED = 3  # exit status
NONE_READ = 1
TOP = 3  # as text, unless --top says otherwise

Probabilities = dict[str, float]


class Batch(NamedTuple):
    """Paths, each with the reason why there is no picture, and the pictures (n, 3, H, W)."""

    found: list[tuple[str, str]]
    pictures: Tensor


def run(arguments: argparse.Namespace) -> int:
    """Predict and print, or write to ``--output``; the exit status."""
    there = arguments.output and os.path.exists(arguments.output)
    inputs = find(arguments.pictures) if there else ()
    files.require_output(arguments.output, (arguments.path, *inputs))
    device = splits.choose_device(arguments.device)
    opened = saved.open_run(arguments.path, arguments.which)
    opened.algorithm.to(device)
    transform, words = transform_of(opened)
    print(f"Pictures: {words}", file=sys.stderr)
    size, workers = arguments.batch_size, arguments.workers
    if workers is None:  # folders may hold many
        many = any(map(os.path.isdir, arguments.pictures))
        workers = min(splits.MOST_WORKERS, machine.cores()) if many else 0
    done: Counter[str] = Counter()
    with files.stream(arguments.output) as file:
        batches = read(find(arguments.pictures), transform, size, workers)
        for batch in tqdm(batches, unit="batch", desc="predicting", delay=2, disable=None):
            predicted = predict(opened, batch.pictures.to(device))
            for path, problem in batch.found:
                done["skipped" if problem else "read"] += 1
                if problem:
                    tqdm.write(f"carft: {shown(path)} is skipped: {shown(problem)}", sys.stderr)
                file.write(_line(path, problem or next(predicted), arguments))
            file.flush()
    if done["skipped"]:
        print(f"carft: {done['skipped']} of {done.total()} pictures were skipped", file=sys.stderr)
        return SOME_SKIPPED if done["read"] else NONE_READ
    return 0


def predict(
    opened: saved.TrainedRun, batch: Tensor
) -> Iterator[tuple[Probabilities, Probabilities]]:
    """Probabilities of classes and of contexts for each picture of a batch (n, 3, H, W)."""
    if not len(batch):
        return
    algorithm = opened.algorithm
    with torch.no_grad():
        features = algorithm.features(batch)  # once for both
        classes = algorithm.class_logits(features).double().softmax(dim=1)
        contexts = algorithm.context_logits(features).double().softmax(dim=1)
    names = _distinct(opened.classes)
    for of_classes, of_contexts in zip(classes.tolist(), contexts.tolist()):
        yield dict(zip(names, of_classes)), dict(zip(opened.contexts, of_contexts))


def find(paths: Iterable[str]) -> Iterator[str]:
    """The pictures in ``paths``: files as they are, folders searched to the bottom, sorted.

    In folders a picture is what has one of torchvision's IMG_EXTENSIONS; a folder without any is
    told as a picture that cannot be read.
    """
    for path in paths:
        empty = True
        for folder, inner, names in os.walk(path):
            inner.sort()
            for name in sorted(names):
                if name.lower().endswith(IMG_EXTENSIONS):
                    empty = False
                    yield os.path.join(folder, name)
        if empty:
            yield path


def read(
    paths: Iterable[str], transform: Callable[[Any], Tensor], batch_size: int, workers: int
) -> Iterator[Batch]:
    """Batches of pictures, read by ``workers`` processes; no more than a few at a time are held."""
    loader: DataLoader[Any] = DataLoader(
        _Pictures(transform),
        batch_sampler=_chunks(iter(paths), batch_size),
        num_workers=workers,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
    )
    return iter(loader)


def transform_of(run: saved.TrainedRun) -> tuple[Callable[[Any], Tensor], str]:
    """The transform of the run's test pictures, and in words what is done.

    Of the protocol ``host`` no more is recorded than the normalisation: its pictures are squeezed
    to a square as DomainBed's are.
    """
    size, name = run.input_shape[-1], run.hparams["protocol"]
    known = name in pictures.PRESETS
    words = pictures.PROTOCOLS[name if known else "domainbed"].partition("test: ")[2]
    if known:
        return pictures.transform(name, size, augment=False), f"{words}, {size} px ({name})"
    # The mean and deviation that the run's input undoes; the inverse of what CLIPInput folds.
    mean, std = torch.tensor(pictures.CLIP_MEAN), torch.tensor(pictures.CLIP_STD)
    scale, shift = (one.flatten().cpu() for one in run.algorithm.input.buffers())
    normalise = transforms.Normalize((shift * std + mean).tolist(), (scale * std).tolist())
    squeeze = transforms.Resize((size, size))
    return transforms.Compose([squeeze, transforms.ToTensor(), normalise]), (
        f"{words}, {size} px, as DomainBed's are: of its DomainBed's own transforms the run "
        "recorded only the normalisation"
    )


def _chunks(paths: Iterator[str], size: int) -> Iterator[list[str]]:
    while chunk := list(itertools.islice(paths, size)):
        yield chunk


def _as_it_is(batch: Batch) -> Batch:
    return batch


class _Pictures(Dataset[Any]):
    """Read as DomainBed reads them, as RGB, but for cut-off files.

    DomainBed has Pillow fill these up with grey; a user wants to know.
    """

    def __init__(self, transform: Callable[[Any], Tensor]) -> None:
        self._transform = transform

    def __getitems__(self, paths: Sequence[str]) -> Batch:
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            read = [(path, *self._picture(path)) for path in paths]
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before
        whole = [picture for _, picture, _ in read if picture is not None]
        stacked = torch.stack(whole) if whole else torch.empty(0)
        return Batch([(path, problem) for path, _, problem in read], stacked)

    def _picture(self, path: str) -> tuple[Tensor | None, str]:
        """The picture, or why there is none."""
        if os.path.isdir(path):
            return None, f"no picture in this folder: no {', '.join(IMG_EXTENSIONS)}"
        try:
            with Image.open(path, formats=listing.FORMATS) as picture:
                return self._transform(picture.convert("RGB")), ""
        except UnidentifiedImageError:
            return None, "not a picture that Pillow can read"
        except Exception as error:  # of Pillow's decoders, half a dozen types
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            return None, " ".join(reason.split()) or type(error).__name__


def _distinct(names: Sequence[str]) -> list[str]:
    """Two folders may be read as the same words: then their labels tell the classes apart."""
    counts = Counter(names)
    return [n if counts[n] == 1 else f"{n} (label {label})" for label, n in enumerate(names)]


def _line(
    path: str, found: tuple[Probabilities, Probabilities] | str, arguments: argparse.Namespace
) -> str:
    """A line of JSON; of text, none for a picture that is skipped, of which ``found`` says why."""
    as_json = arguments.format == "jsonl"
    if isinstance(found, str):
        return json.dumps({"path": path, "error": found}) + "\n" if as_json else ""
    top = arguments.top or (None if as_json else TOP)
    classes, contexts = (_likeliest(one, top) for one in found)
    if as_json:
        return json.dumps({"path": path, "classes": classes, "contexts": contexts}) + "\n"
    words = (
        ", ".join(f"{name} {100 * share:.1f}%" for name, share in one.items())
        for one in (classes, contexts)
    )
    return f"{shown(path)}: {shown(' | '.join(words))}\n"


def _likeliest(found: Probabilities, count: int | None) -> Probabilities:
    """All in their own order, or the likeliest first."""
    if count is None:
        return found
    return dict(sorted(found.items(), key=lambda item: -item[1])[:count])
