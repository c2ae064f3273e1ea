"""Pictures of the environment left out on which two algorithms disagree, and what each thinks.

Nothing is picked by hand: all pictures of the target's in-split, whose accuracy is reported, are
classified again, and the first in the order of the split are shown.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from domainbed_carft.errors import CarftError
from domainbed_carft.method import objective, pictures
from domainbed_carft.report import weights
from domainbed_carft.report.content import (
    Belief,
    Context,
    Direction,
    Example,
    Examples,
    OfTarget,
)
from domainbed_carft.report.weights import Weights
from domainbed_carft.results import labels as environments
from domainbed_carft.results import selection
from domainbed_carft.results.selection import Selected
from domainbed_carft.results.settings import Group
from domainbed_carft.runs import passes, saved, splits

BATCH = 64
TOP = 3  # contexts of each
SIDE = 144  # px of a picture on the page, at most
ORIGINAL = "original CLIP"


class Judged(NamedTuple):
    """A run and its answers to all pictures: probabilities (N, K), labels (N,)."""

    weights: Weights
    run: saved.Run
    items: Any
    probabilities: Tensor
    labels: Tensor

    @property
    def right(self) -> Tensor:
        """(N,), whether the most likely class is the true one."""
        return self.probabilities.argmax(dim=1) == self.labels


def of_dataset(
    group: Group, method: str, dataset: str, pair: Sequence[str], count: int, data_dir: str | None
) -> Examples:
    """``count`` examples of each direction for each environment left out.

    What stands in the way of an environment's is said in its place.
    """
    labels = environments.labels(group.runs, group.planned)[dataset]
    selected = selection.select(group.runs, method)
    there = {(one.dataset, one.algorithm) for one in selected}
    absent = [name for name in pair if (dataset, name) not in there]
    if absent:
        return Examples(pair, (), f"No job of {' and '.join(absent)} on {dataset} can be compared.")
    targets = []
    for target, label in enumerate(labels):
        found, why = weights.pairs(selected, pair, dataset, target)
        if not found:
            targets.append(OfTarget(label, lacking=why))
            continue
        try:
            targets.append(_of_target(label, target, found, selected, count, data_dir))
        except CarftError as error:
            targets.append(OfTarget(label, lacking=f"{error}"))
    return Examples(pair, targets, _common_reason(targets))


def _common_reason(targets: Sequence[OfTarget]) -> str:
    """Said once if it is the same for all."""
    reasons = {target.lacking for target in targets}
    return reasons.pop() if len(reasons) == 1 else ""


def _of_target(
    label: str, target: int, found: Sequence[Weights], selected: Sequence[Selected], count: int,
    data_dir: str | None,
) -> OfTarget:  # fmt: skip
    a, b = (_judge(one, target, data_dir) for one in found)
    if not torch.equal(a.labels, b.labels):
        raise CarftError(
            f"{a.weights.run.folder} and {b.weights.run.folder} have different splits of {label}; "
            "they cannot be compared picture by picture"
        )
    if a.run.contexts != b.run.contexts:
        raise CarftError(
            f"{a.weights.run.folder} and {b.weights.run.folder} have different contexts; they "
            "cannot be compared picture by picture"
        )
    run = found[0].run
    remarks = [f"Trial {run.trial}.", *(_remark(one, target) for one in (a, b))]
    there = weights.originals(selected, run.dataset, target, run.trial)
    beginning, problems = _beginning(there, (a.run, b.run))
    remarks += [f"Without the {ORIGINAL}: {problem}." for problem in problems]
    directions = [
        _direction(one, other, (a, b), beginning, count) for one, other in ((a, b), (b, a))
    ]
    return OfTarget(
        label,
        len(a.labels),
        int((a.right & b.right).sum()),
        int((~a.right & ~b.right).sum()),
        directions,
        remarks,
    )


def _beginning(
    there: Sequence[Weights], pair: Sequence[saved.Run]
) -> tuple[saved.Run | None, list[str]]:
    """The first that is the original of both, else what is wrong with each."""
    problems = []
    for one in there:
        try:
            run = _opened(one)
        except CarftError as error:
            problems.append(f"{error}")
            continue
        others = [(other, _difference(run, other)) for other in pair]
        differ = [f"{what} than {other.path}" for other, what in others if what]
        if not differ:
            return run, []
        problems.append(f"{run.path} has {differ[0]}")
    return None, problems


def _difference(original: saved.Run, run: saved.Run) -> str:
    """What the original has that is not ``run``'s, so that no KL is of the two; "" for nothing."""
    scales = [one.hparams["context_scale"] for one in (original, run)]
    ours, theirs = (one.algorithm.context_weights for one in (original, run))
    same = {
        "another clip_backbone": original.hparams["clip_backbone"] == run.hparams["clip_backbone"],
        "another protocol": original.hparams.get("protocol") == run.hparams.get("protocol"),
        "other contexts": original.contexts == run.contexts,
        "other class names": original.classes == run.classes,
        "another context_scale": math.isclose(*scales, rel_tol=1e-4),
        # Text features of a GPU differ from a processor's in their last digits.
        "other context weights": ours.shape == theirs.shape
        and torch.allclose(ours, theirs, atol=1e-3),
    }
    return next((what for what, holds in same.items() if not holds), "")


def _remark(judged: Judged, target: int) -> str:
    """Which weights, and whether they do now what was recorded of them."""
    run = judged.weights.run
    at = run.steps.index(judged.weights.step)
    recorded = float(selection.accuracies(run)[0][at, target])
    now = float(judged.right.double().mean())
    return (
        f"{judged.weights.remark}; accuracy {100 * now:.1f}% now, {100 * recorded:.1f}% recorded."
    )


def _judge(found: Weights, target: int, data_dir: str | None) -> Judged:
    run = _opened(found)
    name = f"env{target}_in"
    (split,) = (split for split in splits.splits(run, data_dir) if split.name == name)
    if not len(split):
        raise CarftError(f"{split.environment} has no picture in its in-split")
    device = passes.choose_device(None)
    run.algorithm.to(device)
    probabilities, labels = [], []
    with torch.inference_mode():
        for _, x, y in passes.batches([split], BATCH, None):
            probabilities.append(run.algorithm.predict(x.to(device)).softmax(dim=1).cpu())
            labels.append(y)
    run.algorithm.to("cpu")
    return Judged(found, run, split.items, torch.cat(probabilities), torch.cat(labels))


def _opened(found: Weights) -> saved.Run:
    """Raises CarftError for weights that are not of the run in whose folder they are."""
    run, of = saved.open_run(found.run.folder, which=found.which), found.run
    wanted = (of.dataset, of.algorithm, list(of.test_envs), of.trial, of.choice)
    keys = ("dataset", "algorithm", "test_envs", "trial_seed", "hparams_seed")
    if tuple(map(run.args.get, keys)) != wanted or run.step not in (None, found.step):
        raise CarftError(
            f"{run.path} is not of the run that is recorded beside it, {of.algorithm} on "
            f"{of.dataset}, test_envs {list(of.test_envs)}, trial {of.trial}, step {found.step:g}"
        )
    return run


def _direction(
    right: Judged, wrong: Judged, both: Sequence[Judged], beginning: saved.Run | None, count: int
) -> Direction:
    disagree = (right.right & ~wrong.right).nonzero().flatten().tolist()
    shown = [_example(index, both, beginning) for index in disagree[:count]]
    names = (right.weights.run.algorithm, wrong.weights.run.algorithm)
    return Direction(*names, len(disagree), shown)


def _example(index: int, both: Sequence[Judged], beginning: saved.Run | None) -> Example:
    columns = [judged.weights.run.algorithm for judged in both]
    with torch.inference_mode():
        logits = [_context_logits(judged.run, judged.items[index][0]) for judged in both]
        first = None
        if beginning is not None:
            first = _context_logits(beginning, both[0].items[index][0])
            columns.insert(0, ORIGINAL)
    spread = [one.softmax(dim=1)[0] for one in ([first] if first is not None else []) + logits]
    kls = [
        None
        if first is None
        else float(objective.context_kl(first, one, objective.KL_DIRECTIONS[0]))
        for one in logits
    ]
    return Example(
        _picture(both[0], index),
        index,
        both[0].run.classes[int(both[0].labels[index])],
        [_belief(judged, index, kl) for judged, kl in zip(both, kls)],
        columns,
        _contexts(both[0].run.contexts, spread),
    )


def _context_logits(run: saved.Run, x: Tensor) -> Tensor:
    return run.algorithm.context_logits(run.algorithm.features(x[None]))


def _belief(judged: Judged, index: int, kl: float | None) -> Belief:
    probabilities = judged.probabilities[index]
    answer, label = int(probabilities.argmax()), int(judged.labels[index])
    return Belief(
        judged.weights.run.algorithm, judged.run.classes[answer], float(probabilities[answer]),
        float(probabilities[label]), answer == label, kl,
    )  # fmt: skip


def _contexts(templates: Sequence[str], spread: Sequence[Tensor]) -> list[Context]:
    """The union of the most likely of each, by their highest probability."""
    wanted = {int(i) for one in spread for i in one.topk(min(TOP, len(one))).indices}
    highest = {i: max(float(one[i]) for one in spread) for i in wanted}
    order = sorted(wanted, key=lambda i: (-highest[i], i))
    return [Context(templates[i], [float(one[i]) for one in spread]) for i in order]


def _picture(judged: Judged, index: int) -> str:
    """The picture as the model sees it, as a data URI."""
    from torchvision.transforms.functional import to_pil_image

    seen = judged.run.algorithm.input(judged.items[index][0][None])[0]
    std = torch.tensor(pictures.CLIP_STD).view(3, 1, 1)
    mean = torch.tensor(pictures.CLIP_MEAN).view(3, 1, 1)
    picture = to_pil_image((seen * std + mean).clamp(0, 1))
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
