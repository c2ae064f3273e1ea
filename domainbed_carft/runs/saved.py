"""A saved run: its weights, its arguments and hyperparameters, and the words that it goes by."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import DONE, RECORDS, WEIGHTS
from domainbed_carft.method import algorithms, backbone, prompts
from domainbed_carft.runs import checkpoints
from domainbed_carft.text import counted


@dataclass(frozen=True)
class Run:
    """A run of one of our algorithms, read from the file ``path``, on the CPU and in eval mode.

    ``args`` and ``hparams`` are as recorded. ``classes`` are the class names in label order, as
    prompts say them; ``contexts`` the templates, in the order of ``context_logits``. ``step`` is
    the step after which the weights were saved, None for the last of the run. ``alpha`` is None but
    for weights that ``carft wise-ft`` made. ``content`` is what the file holds beside the weights.
    """

    path: Path
    algorithm: algorithms.CLIPAlgorithm
    args: Mapping[str, Any]
    hparams: Mapping[str, Any]
    classes: list[str]
    contexts: list[str]
    step: int | None
    alpha: float | None
    content: Mapping[str, Any]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one picture of the data set: (3, height, width)."""
        return tuple(self.content["model_input_shape"])

    @property
    def name(self) -> str:
        """What to call it for people: "CARFT on EmojiStyles, model.pkl"."""
        return f"{self.args['algorithm']} on {self.args.get('dataset', '?')}, {self.path.name}"


def open_run(
    path: Path | str, which: str | None = None, class_names: Path | str | None = None
) -> Run:
    """The run in a job's folder, or in a file of weights.

    ``which`` of WEIGHTS is read of a folder, the last by default. ``class_names`` is a text file
    with a name a line, in label order, for runs that do not say theirs.

    Raises CarftError for a folder without the weights, a file that ``checkpoints.read`` refuses,
    weights that are no finite numbers, and a run that does not say its words.
    """
    file = _weights_file(Path(path), which)
    content = checkpoints.read(file)
    algorithm = checkpoints.restore(content, file)
    _require_finite(algorithm, file)
    contexts, classes = _words(algorithm, content, file, class_names)
    return Run(
        path=file,
        algorithm=algorithm,
        args=content["args"],
        hparams=content["model_hparams"],
        classes=classes,
        contexts=contexts,
        step=_step(content, file),
        alpha=content.get("wise_ft_alpha"),
        content={key: value for key, value in content.items() if key != "model_dict"},
    )


def original_clip(run: Run, file: str | None) -> backbone.Backbone:
    """The CLIP that the run started from: ``file`` if given, else the published one it names.

    A run may be a stranger's, so a path in it is never opened. Raises CarftError where the run
    names a path and no ``file`` is given, and where the CLIP cannot be loaded.
    """
    name = file or run.hparams["clip_backbone"]
    if not file and name not in backbone.PUBLISHED:
        raise CarftError(
            f"{run.path} started from the CLIP {name!r}. A path that a run names is not opened: "
            "say with --original FILE where that CLIP is"
        )
    try:
        return backbone.load(name)
    except CarftError as error:
        raise CarftError(
            f"the CLIP that {run.path} started from cannot be loaded: {error}. Say with "
            "--original FILE where it is"
        ) from error


def _weights_file(path: Path, which: str | None) -> Path:
    if os.path.isdir(path):
        file = path / WEIGHTS[which or "last"]
        if not os.path.exists(file):
            raise CarftError(f"{path} has no {file.name}{_instead(path)}")
        return file
    if which is not None and os.path.exists(path):
        raise CarftError(
            f"{path} is a file, and --which chooses one of a folder; leave --which out, or give "
            f"the folder {path.parent}"
        )
    if not os.path.exists(path):
        raise CarftError(
            f"there is no {path}; expected a job's folder with {' or '.join(WEIGHTS.values())} in "
            "it, or a file of weights"
        )
    return path


def _require_finite(algorithm: algorithms.CLIPAlgorithm, file: Path) -> None:
    state = algorithm.state_dict().items()
    wrong = [name for name, tensor in state if not tensor.isfinite().all()]
    if wrong:
        more = f" and {counted(len(wrong) - 1, 'other tensor')}" if len(wrong) > 1 else ""
        raise CarftError(
            f"{file} has values that are no finite numbers in {wrong[0]}{more}: the training "
            "diverged, and it predicts nothing. Take weights from before that, if there are any "
            "(--which best, or a model_step*.pkl), or train again with a smaller hparam lr"
        )


def _instead(folder: Path) -> str:
    """What the user might have meant."""
    others = [which for which, name in WEIGHTS.items() if os.path.exists(folder / name)]
    if others:
        return f", but {WEIGHTS[others[0]]}: --which {others[0]} takes that"
    looked_for = f"; neither {' nor '.join(WEIGHTS.values())} is there"
    inner = _folders_in(folder)
    jobs = [
        name for name in inner if any(os.path.exists(folder / name / f) for f in WEIGHTS.values())
    ]
    if jobs:
        return f"{looked_for}, but it holds folders of jobs, such as {folder / jobs[0]}: name one"
    if os.path.exists(folder / RECORDS) and not os.path.exists(folder / DONE):
        return f"{looked_for}: the run is not done; `carft sweep status` says how far it is"
    return (
        f"{looked_for}. Expected a job's folder, trained without --skip_model_save and without "
        "--keep_weights none"
    )


def _folders_in(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:
        return []


def _step(content: Mapping[str, Any], file: Path) -> int | None:
    """The step of the weights, which ``--save_model_every_checkpoint`` tells by the file's name."""
    if "best_step" in content:
        return int(content["best_step"])
    if content.get("wise_ft_step") is not None:
        return int(content["wise_ft_step"])
    named = re.fullmatch(r"model_step(\d+)\.pkl", file.name)
    return int(named[1]) if named else None


def _words(
    algorithm: algorithms.CLIPAlgorithm,
    content: Mapping[str, Any],
    file: Path,
    given: Path | str | None,
) -> tuple[list[str], list[str]]:
    """Contexts and class names: those saved with the weights, else those that the hparams name."""
    text = getattr(algorithm, "words", None)
    if text is None:
        return _named_words(content, file, given)
    try:
        letters = bytes(text.tolist())
    except (TypeError, ValueError) as error:
        raise CarftError(f"the words in {file} are no bytes ({error})") from error
    contexts, classes = prompts.from_json(letters.decode(errors="replace"))
    expected = (len(algorithm.context_weights), content["model_num_classes"])
    if (len(contexts), len(classes)) != expected:
        raise CarftError(
            f"{file} has {len(contexts)} contexts and {len(classes)} class names for weights of "
            f"{expected[0]} contexts and {expected[1]} classes: it was changed after training"
        )
    if given is not None and _from_file(given, len(classes)) != classes:
        raise CarftError(
            f"{given} names other classes than {file} was trained with, which are "
            f"{', '.join(classes)}; leave --class_names out"
        )
    return contexts, classes


def _from_file(path: Path | str, num_classes: int) -> list[str]:
    return prompts.class_names({"class_names": str(path)}, num_classes)


def _named_words(
    content: Mapping[str, Any], file: Path, given: Path | str | None
) -> tuple[list[str], list[str]]:
    """Of a run that was saved before its words were saved with it."""
    hparams = content["model_hparams"]
    named = hparams if given is None else {**hparams, "class_names": str(given)}
    try:
        classes = prompts.class_names(named, content["model_num_classes"])
        contexts = prompts.contexts(named["contexts"])
    except (CarftError, KeyError) as error:
        raise _no_words(file, str(error)) from error
    recorded, found = hparams.get("prompts_digest", ""), prompts.digest(contexts, classes)
    if recorded not in ("", found):
        raise _no_words(
            file,
            f"those of class_names {named['class_names']!r} and contexts {named['contexts']!r} "
            f"have the digest {found}, and it was trained with {recorded}",
        )
    return contexts, classes


def _no_words(file: Path, reason: str) -> CarftError:
    return CarftError(
        f"{file} was saved before runs kept their words, and these are not to be found again: "
        f"{reason}. Name the classes with --class_names FILE, a text file with a name a line, in "
        "label order; a file that the hparam contexts names has to be where it was"
    )
