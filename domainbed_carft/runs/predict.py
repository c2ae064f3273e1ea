"""`carft predict`: classes and contexts of a user's pictures, one line each, as they are read."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import ImageFile, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader
from tqdm import tqdm

from domainbed_carft import launchers, text
from domainbed_carft.method import pictures as images
from domainbed_carft.method import protocol
from domainbed_carft.runs import output, saved, splits
from domainbed_carft.runs.saved import Run

SOME_SKIPPED = 3  # exit status
NONE_READ = 1
TOP = 3  # as text, unless --top says otherwise

Probabilities = dict[str, float]


def run(arguments: argparse.Namespace) -> int:
    """Predict and print, or write to ``--output``; the exit status."""
    output.require_file(arguments.output, _read(arguments))
    device = splits.choose_device(arguments.device)
    opened = saved.open_run(arguments.path, arguments.which, arguments.class_names)
    opened.algorithm.to(device)
    transform, words = transform_of(opened)
    print(f"Pictures: {words}", file=sys.stderr)
    workers = _workers(arguments)
    found = find(arguments.pictures)
    done: Counter[str] = Counter()
    with output.stream(arguments.output) as file, splits.memory_told(arguments.batch_size):
        batches = read(found, transform, arguments.batch_size, workers)
        for batch in tqdm(batches, unit="batch", desc="predicting", delay=2, disable=None):
            predicted = predict(opened, batch.pictures.to(device))
            for one in batch.found:
                done["skipped" if one.problem else "read"] += 1
                if one.problem:
                    told = f"carft: {text.shown(one.path)} is skipped: {one.problem}"
                    tqdm.write(told, file=sys.stderr)
                line = _line(one, None if one.problem else next(predicted), arguments)
                file.write(line)
            file.flush()
    return _status(done)


def _read(arguments: argparse.Namespace) -> Iterator[Path | str | None]:
    """What is read, of folders only where the output may be one of their pictures."""
    yield arguments.path
    yield arguments.class_names
    in_folders = str(arguments.output).lower().endswith(IMG_EXTENSIONS)
    for path in arguments.pictures:
        if in_folders or not os.path.isdir(path):
            yield from (found.path for found in find([path]))


def predict(opened: saved.Run, batch: Tensor) -> Iterator[tuple[Probabilities, Probabilities]]:
    """Probabilities of classes and of contexts for each picture of a batch (n, 3, H, W)."""
    if not len(batch):
        return
    algorithm = opened.algorithm
    with torch.no_grad():
        features = algorithm.features(batch)  # once for both
        classes = algorithm.class_logits(features).double().softmax(dim=1)
        contexts = algorithm.context_logits(features).softmax(dim=1)
    names = _distinct(opened.classes)
    for of_classes, of_contexts in zip(classes.tolist(), contexts.tolist()):
        yield dict(zip(names, of_classes)), dict(zip(opened.contexts, of_contexts))


def _distinct(names: Sequence[str]) -> list[str]:
    """Two folders may be read as the same words: then their labels tell the classes apart."""
    counts = Counter(names)
    return [n if counts[n] == 1 else f"{n} (label {label})" for label, n in enumerate(names)]


def _line(
    one: Found,
    predicted: tuple[Probabilities, Probabilities] | None,
    arguments: argparse.Namespace,
) -> str:
    """A line of JSON; of text, none for a picture that is skipped."""
    as_json = arguments.format == "jsonl"
    if predicted is None:
        told = {"path": one.path, "error": one.problem}
        return json.dumps(told) + "\n" if as_json else ""
    top = arguments.top if as_json else arguments.top or TOP
    classes, contexts = (_likeliest(found, top) for found in predicted)
    if as_json:
        return json.dumps({"path": one.path, "classes": classes, "contexts": contexts}) + "\n"
    words = text.shown(f"{_words(classes)} | {_words(contexts)}")
    return f"{text.shown(one.path)}: {words}\n"


def _likeliest(found: Probabilities, count: int | None) -> Probabilities:
    """All in their own order, or the likeliest first."""
    if count is None:
        return found
    return dict(sorted(found.items(), key=lambda item: -item[1])[:count])


def _words(found: Probabilities) -> str:
    return ", ".join(f"{name} {100 * share:.1f}%" for name, share in found.items())


def _workers(arguments: argparse.Namespace) -> int:
    """As asked for, else one process a core where there are folders, which may hold many."""
    if arguments.workers is not None:
        return int(arguments.workers)
    if not any(map(os.path.isdir, arguments.pictures)):
        return 0
    return min(splits.MOST_WORKERS, launchers.cores())


def _status(done: Counter[str]) -> int:
    if not done["skipped"]:
        return 0
    print(f"carft: {done['skipped']} of {done.total()} pictures were skipped", file=sys.stderr)
    return SOME_SKIPPED if done["read"] else NONE_READ


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
            return self._transform(default_loader(path)), ""
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
    if name in protocol.PRESETS:
        words = images.PROTOCOLS[name].partition("test: ")[2]
        return protocol.transform(name, size, augment=False), f"{words}, {size} px ({name})"
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
