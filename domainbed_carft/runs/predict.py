"""`carft predict`: classes and contexts of a user's pictures, one line each, in input order."""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from PIL import UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from domainbed_carft import files
from domainbed_carft.clips import pictures
from domainbed_carft.data import picture_files
from domainbed_carft.runs import saved, splits
from domainbed_carft.runs.default_weights import choose_weights, describe_choice
from domainbed_carft.text import progress, shown

SOME_SKIPPED = 3  # exit status
TOP = 3  # as text, unless --top says otherwise

Probabilities = dict[str, float]
Read = tuple[str, "Tensor | str"]  # a path, and its picture (3, H, W), or why there is none


def run(arguments: argparse.Namespace) -> int:
    """Predict and print, or write to ``--output``; 3 if some pictures are skipped, 1 if all are."""
    paths: Any = list(find(arguments.pictures))
    file = choose_weights(arguments.path, arguments.which)
    files.require_output(arguments.output, (file, *paths))
    device = splits.choose_device(arguments.device)
    opened = saved.open_run(file)
    opened.algorithm.to(device)
    if choice := describe_choice(arguments.path, arguments.which, file):
        print(f"carft: {choice}", file=sys.stderr)
    # Folders may hold many.
    workers = splits.workers(arguments.workers, any(map(os.path.isdir, arguments.pictures)))
    read = functools.partial(_read, transform_of(opened))
    loader = DataLoader(paths, arguments.batch_size, num_workers=workers, collate_fn=read)
    skipped = 0
    with files.stream(arguments.output) as out:
        for batch in progress(loader, unit="batch", description="predicting", delay=2):
            whole = [picture for _, picture in batch if not isinstance(picture, str)]
            predicted = predict(opened, torch.stack(whole).to(device)) if whole else iter(())
            for path, picture in batch:
                if isinstance(picture, str):
                    skipped += 1
                    tqdm.write(f"carft: {shown(path)} skipped: {shown(picture)}", sys.stderr)
                found = picture if isinstance(picture, str) else next(predicted)
                out.write(_line(path, found, arguments))
            out.flush()
    if skipped:
        print(f"carft: skipped {skipped} of {len(paths)} pictures", file=sys.stderr)
        return SOME_SKIPPED if skipped < len(paths) else 1
    return 0


def predict(opened: saved.TrainedRun, batch: Tensor) -> Iterator[tuple[Probabilities, ...]]:
    """Probabilities of classes and of contexts for each picture of a batch (n, 3, H, W)."""
    algorithm = opened.algorithm
    with torch.no_grad():
        features = algorithm.features(batch)  # once for both
        classes = algorithm.class_logits(features).double().softmax(dim=1)
        contexts = algorithm.context_logits(features).double().softmax(dim=1)
    # Two folders may be read as the same words: then their labels tell the classes apart.
    times = Counter(opened.classes)
    names = [
        name if times[name] == 1 else f"{name} (label {label})"
        for label, name in enumerate(opened.classes)
    ]
    for of_classes, of_contexts in zip(classes.tolist(), contexts.tolist()):
        yield dict(zip(names, of_classes)), dict(zip(opened.contexts, of_contexts))


def find(paths: Iterable[str]) -> Iterator[str]:
    """The pictures in ``paths``: files as given, folders searched recursively, sorted.

    In folders, pictures are the files with one of torchvision's IMG_EXTENSIONS; a folder without
    any is returned itself.
    """
    for path in paths:
        found: list[str] = []
        for folder, inner, names in os.walk(path):
            inner.sort()
            pictures_of = (name for name in sorted(names) if name.lower().endswith(IMG_EXTENSIONS))
            found += [os.path.join(folder, name) for name in pictures_of]
        yield from found or [path]


def transform_of(run: saved.TrainedRun) -> Callable[[Any], Tensor]:
    """The transform of the run's test pictures.

    Of the protocol ``host`` only the normalisation is recorded; its pictures are squeezed to a
    square, as DomainBed's are.
    """
    size, name = run.content["model_input_shape"][-1], run.hparams["protocol"]
    steps: list[Any] = [transforms.Resize((size, size)), transforms.ToTensor()]
    if name in pictures.PRESETS:
        preset: Any = pictures.transform(name, size, False, run.hparams["preprocessing"])
        steps = preset.transforms[:-1]
    # Normalised as the model wants, and then what the run's input does to get there, undone.
    scale, shift = (one.flatten().tolist() for one in run.algorithm.input.buffers())
    wanted = run.algorithm.input.preprocessing
    mean = [m + s * b for m, s, b in zip(wanted.mean, wanted.std, shift)]
    std = [s * a for s, a in zip(wanted.std, scale)]
    return transforms.Compose([*steps, transforms.Normalize(mean, std)])


def _read(transform: Callable[[Any], Tensor], paths: Sequence[str]) -> list[Read]:
    """Read as DomainBed reads them, as RGB, but for files that are cut off."""
    found: list[Read] = []
    for path in paths:
        try:
            with splits.whole_pictures():
                found.append((path, transform(picture_files.open_picture(path))))
        except IsADirectoryError:
            found.append((path, f"no pictures in this folder ({', '.join(IMG_EXTENSIONS)})"))
        except UnidentifiedImageError:
            found.append((path, "not an image Pillow can read"))
        except Exception as error:  # of Pillow's decoders, half a dozen types
            reason = getattr(error, "strerror", None) or str(error)
            found.append((path, " ".join(reason.split()) or type(error).__name__))
    return found


def _line(path: str, found: tuple[Probabilities, ...] | str, arguments: argparse.Namespace) -> str:
    """A line of JSON or text; ``found`` may be why a picture is skipped, which gives no text."""
    as_json = arguments.format == "jsonl"
    if isinstance(found, str):
        return json.dumps({"path": path, "error": found}) + "\n" if as_json else ""
    if most := arguments.top or (0 if as_json else TOP):  # else all, in their own order
        by_share = (sorted(one.items(), key=lambda item: -item[1]) for one in found)
        found = tuple(dict(one[:most]) for one in by_share)
    if as_json:
        return json.dumps({"path": path, "classes": found[0], "contexts": found[1]}) + "\n"
    words = (", ".join(f"{name} {100 * share:.1f}%" for name, share in o.items()) for o in found)
    return f"{shown(path)}: {shown(' | '.join(words))}\n"
