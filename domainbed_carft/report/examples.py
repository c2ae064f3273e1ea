"""Pictures of the environment left out on which two algorithms disagree, with their predictions.

Nothing is hand-picked: all pictures of the target's in-split, whose accuracy is reported, are
classified again, and the first in the order of the split are shown.
"""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import WEIGHTS
from domainbed_carft.jobs.records import Run
from domainbed_carft.method import objective
from domainbed_carft.results import selection
from domainbed_carft.results.selection import Selected
from domainbed_carft.results.tables import Table
from domainbed_carft.runs import measuring, saved, splits

BATCH = 64
TOP = 3  # contexts of each
SIDE = 144  # px of a picture on the page, at most
ORIGINAL = "original CLIP"
# Runs with the encoder of the original CLIP, and the hparams they have to share with another run to
# serve as its original.
_UNTRAINED = ("CLIPZeroShot", "CLIPLinearProbe")
_SAME = ("clip_digest", "prompts_digest", "protocol", "context_scale")


class Judged(NamedTuple):
    """A selected run's predictions on all pictures: probabilities (N, K), labels (N,)."""

    one: Selected
    run: saved.TrainedRun
    items: Any
    probabilities: Tensor
    labels: Tensor

    @property
    def right(self) -> Tensor:
        """(N,): whether the most likely class is the true one."""
        return self.probabilities.argmax(dim=1) == self.labels


def part(
    table: Table, runs: Sequence[Run], pair: Sequence[str], most: int, data_dir: str | None
) -> dict[str, Any]:
    """``most`` examples of each direction for each environment left out, or why there are none."""
    targets = []
    chosen = selection.select(runs, table.method)
    for place, label in enumerate(table.columns):
        mine = [one for one in chosen if one.target == place]
        try:
            found = _target(label, mine, pair, most, data_dir)
        except CarftError as error:
            found = {"text": str(error), "remarks": (), "directions": ()}
        targets.append({"environment": label, **found})
    return {"kind": "examples", "figures": (), "targets": targets}


def _target(
    label: str, chosen: Sequence[Selected], pair: Sequence[str], most: int, data_dir: str | None
) -> dict[str, Any]:
    """Of one environment; ``chosen``: what was selected with it left out."""
    a, b = (_judge(one, data_dir) for one in _with_weights(chosen, pair))
    if not torch.equal(a.labels, b.labels) or a.run.contexts != b.run.contexts:
        raise CarftError(
            f"{a.run.path} and {b.run.path} have different splits of {label} or different "
            "contexts; they cannot be compared picture by picture"
        )
    remarks = [f"Trial {a.one.trial}.", _remark(a), _remark(b)]
    original = _original([one for one in chosen if one.trial == a.one.trial], (a, b))
    if original is None:
        remarks.append(
            f"No KL is shown: this needs the weights of a run of {' or '.join(_UNTRAINED)} with "
            f"the same {', '.join(_SAME)}, environment and trial."
        )
    both, neither = int((a.right & b.right).sum()), int((~a.right & ~b.right).sum())
    counts, directions = [], []
    for one, other in ((a, b), (b, a)):
        found = (one.right & ~other.right).nonzero().flatten().tolist()
        examples = [_example(i, (a, b), original) for i in found[:most]]
        right, wrong = one.one.algorithm, other.one.algorithm
        counts.append(f"only {right} gets {len(found)} right")
        title = f"{right} right, {wrong} wrong: {len(examples)} of {len(found)}"
        directions.append((title, examples))
    text = f"Of {len(a.labels)} pictures, both get {both} right and {neither} wrong; "
    return {"text": f"{text}{', '.join(counts)}.", "remarks": remarks, "directions": directions}


def _remark(judged: Judged) -> str:
    """Which weights, and their accuracy now and as recorded."""
    one, run, step = judged.one, judged.one.outcome.runs[0], judged.run.step or 0
    which = "selected" if step == one.outcome.step else f"selected: step {one.outcome.step:g}"
    text = f"{run.algorithm}: {judged.run.path.name}, step {step} ({which}); accuracy "
    text += f"{100 * judged.right.double().mean():.1f}% now"
    if step in run.steps:
        recorded = selection.accuracies(run)[0][run.steps.index(step), one.target]
        text += f", {100 * recorded:.1f}% recorded"
    return f"{text}."


def _with_weights(chosen: Sequence[Selected], pair: Sequence[str]) -> list[Selected]:
    """Of the first trial in which the weights of both algorithms are there."""
    found = {(one.trial, one.algorithm): one for one in chosen if _kept(one)}
    for trial in sorted({one.trial for one in chosen}):
        if all((trial, name) in found for name in pair):
            return [found[trial, name] for name in pair]
    raise CarftError(
        f"No trial has the weights of both {' and '.join(pair)}. Run both without "
        "--skip_model_save and --keep_weights none."
    )


def _kept(one: Selected) -> list[str]:
    """Those of WEIGHTS that are there."""
    folder = Path(one.outcome.runs[0].folder)
    return [which for which, name in WEIGHTS.items() if (folder / name).exists()]


def _open(one: Selected) -> saved.TrainedRun:
    """The weights of the selected checkpoint if they were kept, else others of the run."""
    run, kept = one.outcome.runs[0], _kept(one)
    wanted = "last" if one.outcome.step == max(run.steps) else "best"
    opened = saved.open_run(run.folder, wanted if wanted in kept else kept[0])
    names = ("dataset", "algorithm", "test_envs", "trial_seed")
    if any(opened.args.get(name) != run.job.args[name] for name in names):
        raise CarftError(f"{opened.path} does not belong to the records in its folder")
    return replace(opened, step=int(max(run.steps))) if opened.step is None else opened


def _original(others: Sequence[Selected], ours: Sequence[Judged]) -> saved.TrainedRun | None:
    """A saved run whose encoder is the CLIP that both of ``ours`` started from."""
    for one in others:
        if one.algorithm in _UNTRAINED and _kept(one):
            with contextlib.suppress(CarftError):  # broken, which is nothing against the pair
                opened = _open(one)
                starts = [
                    (run.contexts, [run.hparams[name] for name in _SAME])
                    for run in (opened, *(judged.run for judged in ours))
                ]
                if all(start == starts[0] for start in starts):
                    return opened
    return None


def _judge(one: Selected, data_dir: str | None) -> Judged:
    run = _open(one)
    name = f"env{one.target}_in"
    split = next((split for split in splits.splits(run, data_dir) if split.name == name), None)
    if not split:
        raise CarftError(f"{run.path} has no pictures in {name}, the split left out")
    device = measuring.choose_device(None)
    run.algorithm.to(device)
    probabilities, labels = [], []
    with torch.inference_mode():
        for _, x, y in measuring.split_batches([split], BATCH, None):
            probabilities.append(run.algorithm.predict(x.to(device)).softmax(dim=1).cpu())
            labels.append(y)
    run.algorithm.to("cpu")
    return Judged(one, run, split.items, torch.cat(probabilities), torch.cat(labels))


def _example(
    index: int, both: Sequence[Judged], original: saved.TrainedRun | None
) -> dict[str, Any]:
    """One picture: what it is, what both answer, with probabilities in [0, 1] and KL in nats."""
    run, label = both[0].run, int(both[0].labels[index])
    runs = [*([original] if original else []), *(judged.run for judged in both)]
    names = [judged.one.algorithm for judged in both]
    x = both[0].items[index][0][None]
    with torch.inference_mode():
        logits = [one.algorithm.context_logits(one.algorithm.features(x)) for one in runs]
    spread = torch.cat(logits).softmax(dim=1)  # of each run over all contexts
    top = spread.topk(min(TOP, spread.shape[1])).indices.unique().tolist()
    top.sort(key=lambda i: -spread[:, i].max())
    answers = []
    for judged, own in zip(both, logits[-2:]):
        shares = judged.probabilities[index]
        answer = int(shares.argmax())
        kl = objective.context_kl(logits[0], own, objective.KL_DIRECTIONS[0])
        answers.append(
            {
                "algorithm": judged.one.algorithm,
                "answer": run.classes[answer],
                "probability": float(shares[answer]),
                "of_truth": float(shares[label]),
                "right": answer == label,
                "kl": float(kl) if original else None,
            }
        )
    return {
        "picture": _picture(run, x),
        "number": index,
        "truth": run.classes[label],
        "answers": answers,
        "columns": [ORIGINAL, *names] if original else names,
        "contexts": [(run.contexts[i], spread[:, i].tolist()) for i in top],
    }


def _picture(run: saved.TrainedRun, x: Tensor) -> str:
    """The picture as the model sees it, as a data URI."""
    from torchvision.transforms.functional import to_pil_image

    wanted = run.algorithm.input.preprocessing
    std, mean = (torch.tensor(one).view(3, 1, 1) for one in (wanted.std, wanted.mean))
    picture = to_pil_image((run.algorithm.input(x)[0] * std + mean).clamp(0, 1))
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
