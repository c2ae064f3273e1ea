"""Pictures of the environment left out on which two algorithms disagree, with their predictions.

Nothing is hand-picked: all pictures of the target's in-split, whose accuracy is reported, are
classified again, and the first in the order of the split are shown.
"""

from __future__ import annotations

import base64
import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import WEIGHTS
from domainbed_carft.method import objective
from domainbed_carft.results import selection
from domainbed_carft.results.evaluations import PictureRows
from domainbed_carft.results.selection import Selected
from domainbed_carft.runs import saved, splits
from domainbed_carft.runs.predictions import (
    LoadingOptions,
    choose_device,
    predict_rows,
    run_predictor,
)
from domainbed_carft.runs.run import Run

CONTEXTS_PER_RUN = 3
PICTURE_SIDE = 144  # px of a picture on the page, at most
ORIGINAL = "original CLIP"
# Algorithms that keep the encoder of the original CLIP, and the hparams that such a run has to
# share with another run to serve as its original.
_WITH_ORIGINAL_ENCODER = ("CLIPZeroShot", "CLIPLinearProbe")
_HPARAMS_OF_ORIGINAL = ("clip_digest", "prompts_digest", "protocol", "context_scale")


@dataclass(frozen=True)
class Prediction:
    """What an algorithm predicts of a picture, with probabilities in [0, 1].

    ``kl``: from the original CLIP over all contexts, in nats; None without the original.
    """

    algorithm: str
    predicted: str
    probability: float
    probability_of_truth: float
    is_right: bool
    kl: float | None


@dataclass(frozen=True)
class Example:
    """A picture, with its number in the split, its true class, and what both algorithms predict.

    ``uri``: the picture as the models see it. ``models``: the columns of ``contexts``, whose rows
    are a template and its probability by each model.
    """

    uri: str
    number: int
    truth: str
    predictions: Sequence[Prediction]
    models: Sequence[str]
    contexts: Sequence[tuple[str, Sequence[float]]]


@dataclass(frozen=True)
class TargetExamples:
    """The examples of one environment left out.

    ``text``: how many pictures each algorithm gets right, or why there are no examples;
    ``remarks``: on the weights. ``examples``: a title, such as who is right -> its examples.
    """

    environment: str
    text: str
    remarks: Sequence[str] = ()
    examples: Mapping[str, Sequence[Example]] = field(default_factory=dict)


class Scored(NamedTuple):
    """A selected run's predictions on the pictures of a split.

    ``pictures``: the split's data set of (picture, label); ``rows``: a row for each of them.
    """

    selected: Selected
    run: Run
    pictures: Any
    rows: PictureRows

    @property
    def algorithm(self) -> str:
        """The name of the run's algorithm."""
        return self.selected.row


def examples_of(
    environments: Sequence[str],
    selected: Sequence[Selected],
    pair: Sequence[str],
    count: int,
    data_dir: str | None,
) -> list[TargetExamples]:
    """The examples of each of the ``environments``, or why there are none.

    ``selected``: the selected runs on their data set; ``pair``: the algorithms to compare;
    ``count``: examples of each direction, at most.
    """
    targets = []
    for target, label in enumerate(environments):
        target_selections = [candidate for candidate in selected if candidate.target == target]
        try:
            targets.append(_target_examples(label, target_selections, pair, count, data_dir))
        except CarftError as error:
            targets.append(TargetExamples(label, str(error)))
    return targets


def _target_examples(
    label: str, selected: Sequence[Selected], pair: Sequence[str], count: int, data_dir: str | None
) -> TargetExamples:
    """The examples of one environment; ``selected``: what was selected with it left out."""
    first, second = (_score(run, data_dir) for run in _pair_with_weights(selected, pair))
    is_same_split = np.array_equal(first.rows.label, second.rows.label)
    if not is_same_split or first.run.contexts != second.run.contexts:
        raise CarftError(
            f"{first.run.path} and {second.run.path} have different splits of {label} or different "
            "contexts; they cannot be compared picture by picture"
        )

    trial = first.selected.trial
    remarks = [f"Trial {trial}.", _remark(first), _remark(second)]
    trial_selections = [candidate for candidate in selected if candidate.trial == trial]
    original = _open_original(trial_selections, (first, second))
    if original is None:
        remarks.append(
            f"No KL is shown: this needs the weights of a run of "
            f"{' or '.join(_WITH_ORIGINAL_ENCODER)} with the same "
            f"{', '.join(_HPARAMS_OF_ORIGINAL)}, environment and trial."
        )

    counts = []
    examples = {}
    for winner, loser in ((first, second), (second, first)):
        indices = np.flatnonzero(winner.rows.is_correct & ~loser.rows.is_correct).tolist()
        shown = [_example(index, (first, second), original) for index in indices[:count]]
        title = f"{winner.algorithm} right, {loser.algorithm} wrong"
        examples[f"{title}: {len(shown)} of {len(indices)}"] = shown
        counts.append(f"only {winner.algorithm} gets {len(indices)} right")

    n_both_right = int((first.rows.is_correct & second.rows.is_correct).sum())
    n_both_wrong = int((~first.rows.is_correct & ~second.rows.is_correct).sum())
    text = (
        f"Of {len(first.rows.label)} pictures, both get {n_both_right} right and {n_both_wrong} "
        f"wrong; {', '.join(counts)}."
    )
    return TargetExamples(label, text, remarks, examples)


def _remark(scored: Scored) -> str:
    """Which weights were scored, and their accuracy now and as recorded."""
    run = scored.selected.run
    step = scored.run.step or 0
    selected_step = scored.selected.outcome.step
    checkpoint = "selected" if step == selected_step else f"selected: step {selected_step:g}"

    accuracy = 100 * scored.rows.is_correct.mean()
    text = f"{run.row}: {scored.run.path.name}, step {step} ({checkpoint}); "
    text += f"accuracy {accuracy:.1f}% now"
    if step in run.steps:
        in_splits, _ = selection.accuracies(run)
        recorded = 100 * in_splits[run.steps.index(step), scored.selected.target]
        text += f", {recorded:.1f}% recorded"
    return f"{text}."


def _pair_with_weights(selected: Sequence[Selected], pair: Sequence[str]) -> list[Selected]:
    """What was selected for ``pair`` in the first trial in which both have their weights."""
    saved_selections = {
        (candidate.trial, candidate.row): candidate
        for candidate in selected
        if _saved_weights(candidate)
    }
    for trial in sorted({candidate.trial for candidate in selected}):
        if all((trial, algorithm) in saved_selections for algorithm in pair):
            return [saved_selections[trial, algorithm] for algorithm in pair]

    raise CarftError(
        f"No trial has the weights of both {' and '.join(pair)}. Run both without "
        "--skip_model_save and --keep_weights none."
    )


def _saved_weights(selected: Selected) -> list[str]:
    """The keys of WEIGHTS whose files are in the folder of the selected run."""
    folder = Path(selected.run.folder)
    return [kind for kind, name in WEIGHTS.items() if (folder / name).exists()]


def _open(selected: Selected) -> Run:
    """The weights of the selected checkpoint if they were saved, else others of the run."""
    run = selected.run
    opened = saved.open_step(run, int(selected.outcome.step))
    if opened is None:
        *_, kind = _saved_weights(selected)
        opened = saved.open_run(run.folder, kind)
        saved.require_same_job(opened, run)
    if opened.step is None:
        return replace(opened, step=int(max(run.steps)))
    return opened


def _open_original(candidates: Sequence[Selected], pair: Sequence[Scored]) -> Run | None:
    """A saved run whose encoder is the CLIP that both of ``pair`` started from."""
    for candidate in candidates:
        if candidate.algorithm in _WITH_ORIGINAL_ENCODER and _saved_weights(candidate):
            # If these weights are broken, that says nothing against the pair.
            with contextlib.suppress(CarftError):
                opened = _open(candidate)
                start = _start(opened)
                if all(_start(scored.run) == start for scored in pair):
                    return opened
    return None


def _start(run: Run) -> tuple[Any, list[Any]]:
    """The contexts and hparams that tell from which CLIP a run started."""
    return run.contexts, [run.hparams[name] for name in _HPARAMS_OF_ORIGINAL]


def _score(selected: Selected, data_dir: str | None) -> Scored:
    """Classify the in-split of the target with the selected weights."""
    run = _open(selected)
    name = f"env{selected.target}_in"
    split = next((split for split in splits.splits(run, data_dir) if split.name == name), None)
    if not split:
        raise CarftError(f"{run.path} has no pictures in {name}, the split left out")

    options = LoadingOptions(choose_device(None))
    ((rows,),) = predict_rows([split], run_predictor(run, options.device), options)
    run.algorithm.to("cpu")
    return Scored(selected=selected, run=run, pictures=split.items, rows=rows)


def _example(index: int, pair: Sequence[Scored], original: Run | None) -> Example:
    """One picture of the split, with what both of the ``pair`` predict."""
    run = pair[0].run
    x = pair[0].pictures[index][0][None]
    models = {scored.algorithm: scored.run for scored in pair}
    if original:
        models = {ORIGINAL: original, **models}
    with torch.inference_mode():
        logits = {
            name: model.algorithm.context_logits(model.algorithm.features(x))
            for name, model in models.items()
        }

    # The context probabilities: a row a model, a column a context.
    contexts = torch.cat([*logits.values()]).softmax(dim=1)
    top = contexts.topk(min(CONTEXTS_PER_RUN, contexts.shape[1])).indices.unique().tolist()
    top.sort(key=lambda context: -contexts[:, context].max())

    return Example(
        uri=_picture_uri(run, x),
        number=index,
        truth=run.classes[int(pair[0].rows.label[index])],
        predictions=[
            _prediction(scored, index, _kl(logits.get(ORIGINAL), logits[scored.algorithm]))
            for scored in pair
        ],
        models=[*models],
        contexts=[(run.contexts[context], contexts[:, context].tolist()) for context in top],
    )


def _kl(original_logits: Tensor | None, tuned_logits: Tensor) -> float | None:
    """The divergence of the context distribution from the original's in nats, None without one."""
    if original_logits is None:
        return None
    return float(objective.context_kl(original_logits, tuned_logits, objective.KL_DIRECTIONS[0]))


def _prediction(scored: Scored, index: int, kl: float | None) -> Prediction:
    """The most likely class of a picture, and its probability and that of the true class."""
    rows = scored.rows
    return Prediction(
        algorithm=scored.algorithm,
        predicted=scored.run.classes[int(rows.predicted[index])],
        probability=float(rows.top[index]),
        probability_of_truth=math.exp(rows.log_true[index]),
        is_right=bool(rows.is_correct[index]),
        kl=kl,
    )


def _picture_uri(run: Run, x: Tensor) -> str:
    """The picture (1, 3, H, W) as the model sees it, as a data URI."""
    from torchvision.transforms.functional import to_pil_image

    preprocessing = run.algorithm.input.preprocessing
    std = torch.tensor(preprocessing.std).view(3, 1, 1)
    mean = torch.tensor(preprocessing.mean).view(3, 1, 1)
    picture = to_pil_image((run.algorithm.input(x)[0] * std + mean).clamp(0, 1))
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))

    file = io.BytesIO()
    picture.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
