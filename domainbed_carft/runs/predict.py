"""`carft predict`: classes and contexts of a user's pictures, one line each, as they are read."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from domainbed_carft import machine, text
from domainbed_carft.runs import output, passes, pictures, saved

SOME_SKIPPED = 3  # exit status
NONE_READ = 1
TOP = 3  # as text, unless --top says otherwise

Probabilities = dict[str, float]


def run(arguments: argparse.Namespace) -> int:
    """Predict and print, or write to ``--output``; the exit status."""
    output.require_file(arguments.output, _read(arguments))
    device = passes.choose_device(arguments.device)
    opened = saved.open_run(arguments.path, arguments.which, arguments.class_names)
    opened.algorithm.to(device)
    transform, words = pictures.transform_of(opened)
    print(f"Pictures: {words}", file=sys.stderr)
    workers = _workers(arguments)
    found = pictures.find(arguments.pictures)
    done: Counter[str] = Counter()
    with output.stream(arguments.output) as file, passes.memory_told(arguments.batch_size):
        batches = pictures.read(found, transform, arguments.batch_size, workers)
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
            yield from (found.path for found in pictures.find([path]))


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
    one: pictures.Found,
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
    return min(passes.MOST_WORKERS, machine.cores())


def _status(done: Counter[str]) -> int:
    if not done["skipped"]:
        return 0
    print(f"carft: {done['skipped']} of {done.total()} pictures were skipped", file=sys.stderr)
    return SOME_SKIPPED if done["read"] else NONE_READ
